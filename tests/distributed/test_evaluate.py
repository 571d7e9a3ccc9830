"""Ranks share the questions of an evaluation, and the main one measures what all of them said."""

import json

import pytest

import vlm as package
from vlm.__main__ import main as vlm

pytestmark = pytest.mark.dist


def rows_of(folder):
    (path,) = folder.glob("*/predictions.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_processes_answer_as_one_and_go_on_with_what_one_left(tiny, data, torchrun, tmp_path):
    """One question of eight is predicted already, so that a rank has four and the other three."""
    run = package.train(tiny("align", max_steps=1))
    line = ["evaluate", "questions", data, "--model", run, "--precision", "fp32", "--device", "cpu", "--max-new-tokens", "4", "--resamples", "10"]
    assert vlm([*map(str, line), "--out", str(tmp_path / "one")]) == 0
    (alone,) = (tmp_path / "one").glob("*/")
    interrupted = tmp_path / "two" / alone.name
    interrupted.mkdir(parents=True)
    (interrupted / "settings.json").write_bytes((alone / "settings.json").read_bytes())
    (interrupted / "part-0003.jsonl").write_text(json.dumps({"id": "red", "prompt": "kept", "answer": "kept"}) + "\n", encoding="utf-8")
    done = torchrun("-m", "vlm", *line, "--out", tmp_path / "two", timeout=150)
    assert done.stdout.count("report.html") == 1
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["answer"] for row in two] == ["kept", *(row["answer"] for row in one[1:])]
    assert [row["prompt"] for row in two[1:]] == [row["prompt"] for row in one[1:]]
    assert sorted(path.name for path in interrupted.iterdir()) == ["predictions.jsonl", "settings.json"]

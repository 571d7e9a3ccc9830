"""Score, select, train, search: the path of docs/curate.md on tiny parts, with every third caption moved to a wrong picture."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from captioned_squares import COLORS, write_squares

from vlm.__main__ import main


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """A table of pairs of which eight are right and four wrong."""
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    wrong = COLORS[::3]
    moved = dict(zip(wrong, (*wrong[1:], wrong[0]), strict=True))
    kinds = {color: "wrong" if color in moved else "right" for color in COLORS}
    rows = [{"image": f"squares/train-{color}.png", "caption": f"a {moved.get(color, color)} square", "kind": kinds[color]} for color in COLORS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_what_is_scored_and_kept_is_prepared_trained_on_and_searched(pairs, tmp_path, capsys):
    assert main(["score", "--pairs", str(pairs), "--model", "tiny-clip", "--precision", "fp32", "--carry", "kind", "--out", "scores.parquet"]) == 0
    scored = sorted(pyarrow.parquet.read_table("scores.parquet").to_pylist(), key=lambda row: -row["cos"])
    assert {row["kind"] for row in scored} == {"right", "wrong"} and len(scored) == 12
    assert main(["curate", "scores.parquet", "--drop-duplicates", "--keep-top", "0.667", "--out", "best.jsonl"]) == 0
    kept = [json.loads(line) for line in Path("best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["id"], row["image"], row["caption"]) for row in kept} == {(row["row"], row["image"], row["caption"]) for row in scored[:8]}
    assert main(["preprocess", "--dataset-id", "best.jsonl", "--root-dir", "data", "--workers", "1"]) == 0
    assert main(["embed", "best", "--model", "tiny-ape/align"]) == 0
    settings = ["--stage.global-batch-size", "4", "--stage.max-steps", "2", "--device", "cpu"]
    assert main(["pretrain", "tiny-ape/align", "--stage.dataset", "best", *settings]) == 0
    run = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/"))
    assert main(["pretrain", "tiny-ape/align", "--stage.dataset", "best.jsonl", "--model.name", "raw", *settings]) == 0
    assert main(["score", "--pairs", "data/best", "--model", run, "--out", "again.parquet"]) == 0
    assert pyarrow.parquet.read_table("again.parquet")["caption"].to_pylist() == [row["caption"] for row in kept]
    capsys.readouterr()
    assert main(["search", "best", "--model", run, "--image", "squares/train-green.png", "-k", "3"]) == 0
    assert "runs/search.html" in capsys.readouterr().out and Path("runs/search.html").read_text(encoding="utf-8").count("<figure>") == 3

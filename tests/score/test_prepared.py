"""Prepared datasets as tables of pairs."""

import json
from pathlib import Path

import pytest
from captioned_squares import write_squares
from tiny_scores import job, rows_of, scored

from vlm.__main__ import main
from vlm.errors import ConfigError, UnknownNameError
from vlm.score.job import files_of
from vlm.score.prepared import pair_of, prepared_split


@pytest.fixture
def squares(tmp_path, monkeypatch) -> Path:
    """What `vlm preprocess` makes of two squares and their names."""
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    rows = [{"image": f"squares/train-{color}.png", "caption": f"a {color} square"} for color in ("green", "blue")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["preprocess", "--dataset-id", "pairs.jsonl", "--root-dir", "data", "--workers", "1"]) == 0
    return tmp_path / "data" / "pairs"


def test_the_rows_of_a_prepared_dataset_are_scored(squares, tmp_path):
    assert scored(job(squares, tmp_path / "scores.parquet", carry=("id",))).statuses == {"ok": 2}
    found = rows_of(tmp_path / "scores.parquet")
    assert [row["caption"] for row in found] == ["a green square", "a blue square"]
    assert all((squares / row["image"]).is_file() and row["id"] for row in found)
    assert main(["curate", str(tmp_path / "scores.parquet"), "--keep-top", "0.5", "--out", "kept.jsonl"]) == 0


def test_a_split_is_named_behind_the_folder(squares):
    (split,) = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))["splits"]
    assert files_of((f"{squares}@{split}",)) == [squares / f"samples-{split}.parquet"]
    with pytest.raises(UnknownNameError, match=r"No split of .* named 'other'"):
        files_of((f"{squares}@other",))


def test_a_mix_is_refused_with_its_parts_and_other_folders_are_none(squares):
    values = json.loads((squares / "manifest.json").read_text(encoding="utf-8")) | {"parts": ["a", "b"]}
    (squares / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mix of prepared datasets\. Name them instead: .*data/a, .*data/b"):
        prepared_split(str(squares))
    (squares / "manifest.json").write_text('{"kind": "features"}', encoding="utf-8")
    assert prepared_split(str(squares)) is prepared_split("nowhere") is None


def test_a_sample_of_several_pictures_is_a_fault():
    row = {"id": "x", "images": ["a.png", "b.png"], "messages": []}
    assert "the sample 'x' has 2 pictures" in str(pair_of(row))
    assert pair_of(row | {"images": ["a.png"]}) == {"id": "x", "image": "a.png", "caption": ""}

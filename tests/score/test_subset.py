"""What a subset file holds, and that preparation and training read it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from score_files import write_scores

from vlm.data.benchmarks.captioned import open_captioned
from vlm.data.preparation.prepare import prepare
from vlm.errors import ConfigError, DataFormatError
from vlm.score.located import Pictures
from vlm.score.scores import open_scores
from vlm.score.selection import Rules, select
from vlm.score.subset import write_subset

CAPTIONS = ['a "red" square,\nor so', "ein grünes Quadrat", "a blue square", "a square"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (9, 9), color).save(folder / f"{i}.png")
    return folder


def curated(pictures: Path, out: Path, names=("0.png", "1.png", "2.png", "0.png"), **settings):
    rows = [
        {"image": name, "caption": caption, "cos": cos, "kind": str(i % 2)}
        for i, (name, caption, cos) in enumerate(zip(names, CAPTIONS, (0.9, 0.1, 0.8, 0.7), strict=True))
    ]
    write_scores(pictures.parent / "scores.parquet", rows, carried=("kind",), first=40)
    scores = open_scores([str(pictures.parent / "scores.parquet")])
    return write_subset(scores, select(scores, Rules(min_cos=0.5), scratch=pictures), out, pictures=Pictures(pictures), **settings)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_preparation_and_training_read_a_subset_from_another_folder(pictures, tmp_path, suffix):
    written = curated(pictures, tmp_path / "elsewhere" / f"best{suffix}", also=("kind",))
    assert (written.rows, written.urls) == (3, 0)
    data = open_captioned(str(written.path), data_root=tmp_path)
    assert [Path(picture.source).resolve().name for picture in data.pictures] == ["0.png", "2.png"]
    assert list(data.captions) == [CAPTIONS[0], CAPTIONS[3], CAPTIONS[2]] and data.owners.tolist() == [0, 0, 1]
    assert np.asarray(data.pictures[1].open())[0, 0].tolist() == [0, 0, 255]
    prepared = prepare(str(written.path), tmp_path / "data", name="best", workers=1)
    assert prepared.manifest.splits["train"].rows == 3 and not prepared.manifest.dropped.get("train")
    assert list(open_captioned("best", data_root=tmp_path / "data").captions) == list(data.captions)


def test_rows_keep_their_numbers_and_columns(pictures, tmp_path):
    written = curated(pictures, tmp_path / "best.jsonl", also=("kind",))
    rows = [json.loads(line) for line in written.path.read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {"id": 42, "image": "pictures/2.png", "caption": CAPTIONS[2], "cos": 0.8, "kind": "0"}


def test_urls_and_absolute_paths_stay_as_they_are_and_urls_are_counted(pictures, tmp_path):
    names = (str(pictures / "0.png"), "1.png", "https://example.org/2.png", "0.png")
    written = curated(pictures, tmp_path / "best.jsonl", names=names)
    assert written.urls == 1
    assert [json.loads(line)["image"] for line in written.path.read_text(encoding="utf-8").splitlines()] == [names[0], names[2], "pictures/0.png"]


@pytest.mark.parametrize(
    ("names", "out", "said"),
    [
        (("a", "b", "c", "d"), "best.jsonl", "There is no picture .*/a. Say with --image-root"),
        (("sha256:12", "1.png", "2.png", "0.png"), "best.jsonl", "sha256:12 is a picture that lay in the scored table itself"),
        (("0.png", "1.png", "2.png", "0.png"), "best.parquet", r"best\.parquet is to end with \.jsonl or \.csv"),
    ],
)
def test_a_subset_that_nobody_could_read_is_not_written(pictures, tmp_path, names, out, said):
    with pytest.raises((DataFormatError, ConfigError), match=said):
        curated(pictures, tmp_path / out, names=names)
    assert not (tmp_path / out).exists()

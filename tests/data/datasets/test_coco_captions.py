from pathlib import Path

import pytest
from tiny_archives import opened, places_of

from vlm.data.datasets import DATASETS
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message


def ids(rows) -> list[str]:
    return [row.id for row in rows]


def test_karpathys_splits_are_apart_and_restval_is_trained_unless_refused(tmp_path: Path):
    source = opened("coco-captions", tmp_path / "with")
    assert ids(source.rows("train")) == ["9/90", "9/91", "74/740", "74/741"]
    assert ids(source.rows("val")) == ["73/730", "73/731"]
    assert ids(source.rows("test")) == ["42/420", "42/421"]
    assert ids(opened("coco-captions", tmp_path / "without", restval=False).rows("train")) == ["9/90", "9/91"]


def test_a_row_is_one_caption_with_the_numbers_of_its_picture_and_among_its_captions(tmp_path: Path):
    first, second = opened("coco-captions", tmp_path, request="Say what you see.").rows("test")
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert first.images == second.images == (Path("val2014/COCO_val2014_000000000042.jpg"),)
    assert first.messages == (Message("user", "<image>\nSay what you see."), Message("assistant", "Caption 0 of 42."))
    assert [row.extra for row in (first, second)] == [{"image_id": "42", "caption": "0"}, {"image_id": "42", "caption": "1"}]


def test_the_splits_of_2017_have_their_own_pictures(tmp_path: Path):
    source = opened("coco-captions-2017", tmp_path)
    (first, _) = source.rows("val")
    assert isinstance(first, Sample)
    assert first.images == (Path("val2017/000000000139.jpg"),)
    assert source.locate(first.images[0]) == tmp_path / "val2017.zip.files/val2017/000000000139.jpg"
    assert ids(source.rows("train")) == ["9/90", "9/91", "25/250", "25/251"]


def test_an_archive_without_its_list_is_named(tmp_path: Path):
    spec, places = DATASETS["coco-captions"], places_of("coco-captions", tmp_path)
    (places["caption_datasets.zip"] / "dataset_coco.json").unlink()
    with pytest.raises(DataFormatError, match=r"caption_datasets\.zip\.files has no file dataset_coco\.json"):
        list(spec.open(spec.options, places).rows("train"))

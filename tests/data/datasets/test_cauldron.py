import shutil
import tempfile
from pathlib import Path

import pytest
from tiny_archives import build, opened, picture, places_of

from vlm.data.datasets import DATASETS
from vlm.data.datasets.cauldron import SHARDS, SUBSETS, archives
from vlm.data.preparation.prepare import prepare
from vlm.data.sample import Sample
from vlm.errors import DataFormatError


def test_there_are_the_fifty_published_subsets():
    assert len(set(SUBSETS)) == len(SUBSETS) == 50
    assert set(SHARDS) < set(SUBSETS)


def test_shards_are_named_apart_and_linked_where_the_hub_converts_them():
    first, second = archives("chartqa")
    assert (first.file, second.file) == ("the-cauldron-chartqa-0000.parquet", "the-cauldron-chartqa-0001.parquet")
    assert second.url.endswith("/datasets/HuggingFaceM4/the_cauldron/resolve/refs%2Fconvert%2Fparquet/chartqa/train/0001.parquet")


def test_a_subset_of_unknown_shards_is_one_tar_made_by_hand():
    (archive,) = archives("okvqa")
    assert (archive.file, archive.url) == ("the-cauldron-okvqa.tar", "")
    assert archive.page.endswith("/okvqa/train")


def test_questions_about_a_picture_are_turns_and_pictures_keep_their_bytes(tmp_path: Path):
    source = opened("the-cauldron-ai2d", tmp_path)
    one, two = source.rows("train")
    assert isinstance(one, Sample) and isinstance(two, Sample)
    assert [message.text for message in one.messages] == ["<image>\nWhat?", "A square.", "Which color?", "One."]
    assert two.messages[0].text == "<image><image>\nWhich is larger?"
    files = [source.locate(name) for name in (*one.images, *two.images)]
    assert [file and file.read_bytes() for file in files] == [picture(f"the-cauldron-ai2d-0000.parquet/{name}.png") for name in "abc"]


def test_pictures_are_written_into_the_folder_for_them_alone(tmp_path: Path):
    source = opened("the-cauldron-ai2d", tmp_path)
    one, _ = source.rows("train")
    assert isinstance(one, Sample)
    assert source.locate(one.images[0]) == tmp_path / "embedded" / one.images[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedded", "the-cauldron-ai2d-0000.parquet"]


def test_a_preparation_links_the_pictures_of_given_archives_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given, root = tmp_path / "given", tmp_path / "data"
    build("the-cauldron-ai2d", given)
    monkeypatch.setattr(shutil, "copyfile", None)
    monkeypatch.setattr(tempfile, "mkdtemp", None)
    prepared = prepare("the-cauldron-ai2d", root, from_archives=given)
    assert prepared.manifest.splits["train"].images == 3
    assert [path.name for path in given.iterdir()] == ["the-cauldron-ai2d-0000.parquet"]
    assert [path.name for path in root.iterdir()] == ["the-cauldron-ai2d"]
    assert sorted(path.name for path in prepared.folder.iterdir()) == ["images", "manifest.json", "samples-train.parquet"]


def test_a_tar_without_parquet_files_is_named(tmp_path: Path):
    spec, places = DATASETS["the-cauldron-okvqa"], places_of("the-cauldron-okvqa", tmp_path)
    (places["the-cauldron-okvqa.tar"] / "okvqa/0000.parquet").unlink()
    with pytest.raises(DataFormatError, match=r"the-cauldron-okvqa\.tar\.files has no \.parquet file"):
        list(spec.open(spec.options, places).rows("train"))

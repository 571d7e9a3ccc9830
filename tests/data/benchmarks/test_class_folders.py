import json

import pytest
import torch
from PIL import Image

from vlm.data.benchmarks import BENCHMARKS
from vlm.data.benchmarks.class_folders import open_imagenet, open_labelled
from vlm.errors import DataFormatError, UnknownNameError


def fill(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / folder / "b.png")
        (root / folder / "a.JPG").write_bytes(b"broken")
        (root / folder / "readme.md").touch()
    return root


def test_classes_are_the_sorted_folders_and_broken_pictures_are_kept_to_be_counted(tmp_path):
    data = open_labelled(fill(tmp_path / "pets", "siamese_cat", "dog/brown"))
    assert data.name == "pets" and data.class_names == ("dog", "siamese cat")
    assert [picture.id for picture in data.pictures] == ["dog/brown/a.JPG", "dog/brown/b.png", "siamese_cat/a.JPG", "siamese_cat/b.png"]
    assert data.labels.tolist() == [0, 0, 1, 1]


def test_names_stand_in_a_file_of_the_folder_or_in_one_that_is_named(tmp_path):
    root = fill(tmp_path / "pets" / "val", "a", "b").parent
    (root / "val" / "names.txt").write_text("ant\nbee\n", encoding="utf-8")
    (tmp_path / "mine.json").write_text('{"b": "wasp", "a": "fly"}', encoding="utf-8")
    assert open_labelled(root, "val").class_names == ("ant", "bee")
    assert open_labelled(root, "val", tmp_path / "mine.json").class_names == ("fly", "wasp")


def test_an_empty_class_no_class_no_folder_and_equal_names_are_errors(tmp_path):
    (fill(tmp_path / "a", "cat") / "dog").mkdir()
    (tmp_path / "a" / "dog" / "notes.txt").touch()
    with pytest.raises(DataFormatError, match="the class folder 'dog' has no picture"):
        open_labelled(tmp_path / "a")
    with pytest.raises(DataFormatError, match="has no folder; expected one for each class"):
        open_labelled(tmp_path / "a" / "cat")
    with pytest.raises(DataFormatError, match=r"There is no folder .*gone"):
        open_labelled(tmp_path / "gone")
    with pytest.raises(DataFormatError, match="no prompt can tell apart: big cat"):
        open_labelled(fill(tmp_path / "b", "big_cat", "big cat"))


def test_rows_have_one_label_or_several(tmp_path):
    rows = [{"image": "a.png", "label": "dog"}, {"image": "b.png", "label": "cat"}]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = open_labelled(tmp_path / "one.jsonl")
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [1, 0] and data.pictures[0].source == tmp_path / "a.png"
    rows = [{"image": "a.png", "labels": ["dog", "cat"]}, {"image": "b.png", "labels": []}]
    (tmp_path / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    assert torch.equal(open_labelled(tmp_path / "many.json").labels, torch.tensor([[True, True], [False, False]]))
    (tmp_path / "mixed.json").write_text(json.dumps([*rows, {"image": "c.png", "label": "cat"}]), encoding="utf-8")
    with pytest.raises(DataFormatError, match="expected the same in all"):
        open_labelled(tmp_path / "mixed.json")
    (tmp_path / "none.json").write_text('[{"image": "a.png"}]', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"none.json, row 1: the class is missing"):
        open_labelled(tmp_path / "none.json")


def test_imagenet_needs_its_thousand_wnids_and_names_belong_to_their_sorted_order(tmp_path):
    pytest.importorskip("torchvision")
    for number in range(1000):
        folder = tmp_path / "val" / f"n{10_000_000 + 7 * number}"
        folder.mkdir(parents=True)
        (folder / "x.JPEG").touch()
    data = open_imagenet(tmp_path, "val")
    assert data.name == "imagenet1k" and data.class_names[:2] == ("tench", "goldfish") and data.labels.tolist() == list(range(1000))
    folder.rename(tmp_path / "val" / "cat")
    with pytest.raises(DataFormatError, match="has 1000 class folders, among them 'cat'; ImageNet-1k has 1000, named by wnids"):
        open_imagenet(tmp_path / "val", "val")
    with pytest.raises(DataFormatError, match=r"There is no folder .*vall"):
        open_imagenet(tmp_path, "vall")


def test_benchmarks_are_found_by_name():
    assert list(BENCHMARKS) == ["cifar10", "cifar100", "folders", "imagenet1k"] and BENCHMARKS["imagenet"].templates == "imagenet"
    with pytest.raises(UnknownNameError, match=r"No classification benchmark named 'cifar11'\. Did you mean 'cifar10'"):
        BENCHMARKS["cifar11"]

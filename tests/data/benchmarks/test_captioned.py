import json

import pytest
from PIL import Image

from vlm.data.benchmarks.captioned import grouped, open_captioned
from vlm.errors import ConfigError, DataFormatError, UnknownNameError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))


def karpathy(tmp_path):
    def image(number, split, *texts):
        sentences = [{"sentid": 10 * number + i, "raw": text} for i, text in enumerate(texts)]
        return {"cocoid": number, "filepath": "val2014", "filename": f"{number}.jpg", "split": split, "sentences": sentences}

    images = [image(7, "test", "A dog.", "A brown dog."), image(8, "train", "No."), image(9, "test", "A cat.")]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    return path


def summary(data):
    return [picture.id for picture in data.pictures], list(data.captions), data.owners.tolist()


def test_karpathys_file_gives_its_test_split_by_coco_ids(tmp_path):
    data = open_captioned(str(karpathy(tmp_path)), data_root=tmp_path, image_root=tmp_path / "coco")
    assert summary(data) == (["7", "9"], ["A dog.", "A brown dog.", "A cat."], [0, 0, 1])
    assert data.name == "dataset_coco" and data.pictures[1].source == tmp_path / "coco" / "val2014" / "9.jpg"
    assert summary(open_captioned(str(karpathy(tmp_path)), data_root=tmp_path, split="train")) == (["8"], ["No."], [0])
    with pytest.raises(DataFormatError, match="has no caption in the split 'val'"):
        open_captioned(str(karpathy(tmp_path)), data_root=tmp_path, split="val")
    with pytest.raises(UnknownNameError, match="Karpathy split"):
        open_captioned(str(karpathy(tmp_path)), data_root=tmp_path, split="tset")


def test_rows_with_captions(tmp_path):
    rows = [{"image": "a.jpg", "captions": ["A", "B"]}, {"image": "b.jpg", "id": 5, "captions": ["C"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = open_captioned(str(tmp_path / "rows.jsonl"), data_root=tmp_path)
    assert summary(data) == (["a.jpg", "5"], ["A", "B", "C"], [0, 0, 1]) and data.pictures[0].source == tmp_path / "a.jpg"
    with pytest.raises(ConfigError, match="has no split 'test'"):
        open_captioned(str(tmp_path / "rows.jsonl"), data_root=tmp_path, split="test")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "a.jpg", "captions": []}, "row 2: a caption is missing"),
        ({"image": "a.jpg", "captions": ["A", " "]}, "row 2: a caption is missing"),
        ({"image": "a.jpg"}, "row 2: the list 'captions' is missing"),
        ({"captions": ["A"]}, "row 2: an image is not a path"),
    ],
)
def test_a_row_without_picture_or_caption_is_an_error_that_names_it(tmp_path, row, says):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [{"image": "b.jpg", "captions": ["A"]}, row])), encoding="utf-8")
    with pytest.raises(DataFormatError, match=says):
        open_captioned(str(tmp_path / "rows.jsonl"), data_root=tmp_path)


def test_rows_of_one_caption_each_are_put_together_by_picture(tmp_path):
    rows = [{"image": "a.jpg", "caption": "A"}, {"image": "b.jpg", "caption": "B"}, {"image": "a.jpg", "caption": "C"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    ids, captions, owners = summary(open_captioned(str(tmp_path / "rows.json"), data_root=tmp_path))
    assert [id.rsplit("/", 1)[-1] for id in ids] == ["a.jpg", "b.jpg"] and (captions, owners) == (["A", "C", "B"], [0, 0, 1])


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path):
    for name in ("x", "y"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the {name}", encoding="utf-8")
    _, captions, owners = summary(open_captioned(str(tmp_path), data_root=tmp_path))
    assert (captions, owners) == (["the x", "the y"], [0, 1])
    with pytest.raises(ConfigError, match="--image-root is for JSON files"):
        open_captioned(str(tmp_path), data_root=tmp_path, image_root=tmp_path)


def test_samples_of_two_pictures_are_an_error(tmp_path):
    turns = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "two"}]
    (tmp_path / "two.json").write_text(json.dumps([{"id": "s", "image": ["a.png", "b.png"], "conversations": turns}]), encoding="utf-8")
    with pytest.raises(DataFormatError, match="Sample 's' has 2 pictures"):
        open_captioned(str(tmp_path / "two.json"), data_root=tmp_path)


def test_one_id_for_two_files_is_an_error(tmp_path):
    with pytest.raises(DataFormatError, match="the picture 'a' has two files"):
        grouped("d", [("a", tmp_path / "1", "x"), ("a", tmp_path / "2", "y")], missing="")

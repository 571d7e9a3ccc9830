import json
from pathlib import Path

import pytest

from vlm.data.formats.coco import read_coco_captions, read_karpathy
from vlm.data.sample import Dropped, Sample
from vlm.errors import DataFormatError, UnknownNameError
from vlm.messages import Message

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "COCO_9.jpg"}, {"id": 8, "file_name": "COCO_8.jpg"}],
    "annotations": [
        {"id": 70, "image_id": 9, "caption": "A dog. "},
        {"id": 71, "image_id": 8, "caption": "A cat."},
        {"id": 72, "image_id": 9, "caption": "A brown dog."},
    ],
}
SENTENCES = [{"sentid": 70, "raw": "A dog.", "tokens": ["a", "dog"]}, {"sentid": 72, "raw": "A brown dog."}]


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def captioned(id: str, image: str, caption: str, request: str = "Describe the image.") -> Sample:
    return Sample(id, (Path(image),), (Message("user", f"<image>\n{request}"), Message("assistant", caption)), {"image_id": id.split("/")[0]})


def test_each_caption_of_coco_is_a_sample(tmp_path: Path):
    assert list(read_coco_captions(written(tmp_path, COCO))) == [
        captioned("9/70", "COCO_9.jpg", "A dog."),
        captioned("8/71", "COCO_8.jpg", "A cat."),
        captioned("9/72", "COCO_9.jpg", "A brown dog."),
    ]
    (first, *_) = read_coco_captions(written(tmp_path, COCO), request="What is it?")
    assert first == captioned("9/70", "COCO_9.jpg", "A dog.", "What is it?")


def test_each_sentence_of_a_karpathy_split_is_a_sample(tmp_path: Path):
    images = [
        {"cocoid": 9, "imgid": 0, "filepath": "val2014", "filename": "COCO_9.jpg", "split": "test", "sentences": SENTENCES},
        {"cocoid": 8, "imgid": 1, "filepath": "train2014", "filename": "COCO_8.jpg", "split": "train", "sentences": SENTENCES[:1]},
        {"cocoid": 7, "imgid": 2, "filepath": "val2014", "filename": "COCO_7.jpg", "split": "restval", "sentences": SENTENCES[:1]},
        {"imgid": 6, "filename": "flickr.jpg", "split": "val", "sentences": SENTENCES[:1]},
    ]
    path = written(tmp_path, {"images": images, "dataset": "coco"})
    assert list(read_karpathy(path, "test")) == [
        captioned("9/70", "val2014/COCO_9.jpg", "A dog."),
        captioned("9/72", "val2014/COCO_9.jpg", "A brown dog."),
    ]
    assert list(read_karpathy(path, "train")) == [captioned("8/70", "train2014/COCO_8.jpg", "A dog.")]
    assert list(read_karpathy(path, "restval")) == [captioned("7/70", "val2014/COCO_7.jpg", "A dog.")]
    assert list(read_karpathy(path, "val")) == [captioned("6/70", "flickr.jpg", "A dog.")]
    with pytest.raises(UnknownNameError, match="No Karpathy split named 'dev'"):
        list(read_karpathy(path, "dev"))


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("x", "the row is not an object"),
        ({"id": 1, "caption": "x"}, "'image_id' is not a number or name"),
        ({"id": 1, "image_id": 5, "caption": "x"}, "a caption is about no image of the file"),
        ({"id": None, "image_id": 9, "caption": "x"}, "'id' is not a number or name"),
        ({"id": 1, "image_id": 9}, "a caption is not a text"),
        ({"id": 1, "image_id": 9, "caption": " "}, "an answer is empty"),
        ({"id": 1, "image_id": 9, "caption": "an <image>"}, "placeholders and images differ"),
    ],
)
def test_a_faulty_caption_is_dropped(tmp_path: Path, caption: object, reason: str):
    path = written(tmp_path, COCO | {"annotations": [COCO["annotations"][0], caption]})  # type: ignore[index]
    good, dropped = read_coco_captions(path)
    assert isinstance(good, Sample)
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason, dropped.where) == ("2", reason, f"{path}, row 2")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (3, "the row is not an object"),
        ({"cocoid": 9, "filename": "a.jpg", "sentences": []}, "the split is unknown"),
        ({"cocoid": 9, "filename": "a.jpg", "split": ["train"], "sentences": []}, "the split is unknown"),
        ({"filename": "a.jpg", "split": "train", "sentences": []}, "'imgid' is not a number or name"),
        ({"cocoid": 9, "filename": None, "split": "train", "sentences": []}, "an image is not a path"),
        ({"cocoid": 9, "filename": "a.jpg", "split": "train"}, "the list 'sentences' is missing"),
        ({"cocoid": 9, "filename": "a.jpg", "split": "train", "sentences": [3]}, "the row is not an object"),
    ],
)
def test_a_faulty_image_of_karpathy_is_dropped(tmp_path: Path, image: object, reason: str):
    path = written(tmp_path, {"images": [image]})
    (dropped,) = read_karpathy(path, "train")
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{path}, row 1")


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": 3, "annotations": []}])
def test_a_file_without_the_lists_is_an_error(tmp_path: Path, content: object):
    with pytest.raises(DataFormatError, match=r"captions\.json is not as its format says"):
        list(read_coco_captions(written(tmp_path, content)))

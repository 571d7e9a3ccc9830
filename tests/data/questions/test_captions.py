"""Captions as questions: all references of a picture together, whatever file they come from."""

import json

import pytest
from PIL import Image

from vlm.data.questions import QUESTIONS
from vlm.data.questions.base import Source


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "val2014").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / "val2014" / name)
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def opened(path, **others):
    data = QUESTIONS["captions"].open(Source(str(path), **others))
    return {question.id: (question.images, question.answers) for question in data.questions}


def test_coco_karpathy_and_rows_give_the_same(pictures):
    captions = {"7": ("A dog.", "One dog"), "8": ("A cat.",)}
    wanted = {id: ((pictures / "val2014" / name,), captions[id]) for id, name in (("7", "a.jpg"), ("8", "b.jpg"))}
    annotations = [
        {"id": 1, "image_id": 7, "caption": "A dog."},
        {"id": 2, "image_id": 8, "caption": "A cat."},
        {"id": 3, "image_id": 7, "caption": "One dog"},
    ]
    coco = {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}], "annotations": annotations}
    assert opened(write(pictures / "captions_val2014.json", coco)) == wanted
    karpathy = [
        {
            "cocoid": int(id),
            "filepath": "val2014",
            "filename": name,
            "split": "test",
            "sentences": [{"sentid": i, "raw": text} for i, text in enumerate(captions[id])],
        }
        for id, name in (("7", "a.jpg"), ("8", "b.jpg"))
    ]
    assert opened(write(pictures / "dataset_coco.json", {"images": karpathy})) == wanted
    rows = [{"id": id, "image": f"val2014/{name}", "captions": captions[id]} for id, name in (("7", "a.jpg"), ("8", "b.jpg"))]
    assert opened(write(pictures / "mine.json", rows)) == wanted

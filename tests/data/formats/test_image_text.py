import json
from pathlib import Path

import pytest

from vlm.data.formats import FORMATS
from vlm.data.formats.image_text import CAPTION_COLUMNS, IMAGE_COLUMNS, QUESTION_COLUMNS
from vlm.data.sample import Dropped, Row, Sample
from vlm.messages import Message


def read(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return list(FORMATS["image-text"].read(path))


@pytest.mark.parametrize("image", IMAGE_COLUMNS)
@pytest.mark.parametrize("caption", CAPTION_COLUMNS)
def test_a_caption_answers_a_request(tmp_path: Path, image: str, caption: str):
    (sample,) = read(tmp_path, {"id": "t", image.upper(): "a.jpg", f" {caption.title()}": "A dog. "})
    assert sample == Sample("t", (Path("a.jpg"),), (Message("user", "<image>\nDescribe the image."), Message("assistant", "A dog.")))


@pytest.mark.parametrize("question", QUESTION_COLUMNS)
def test_a_question_comes_before_its_answer(tmp_path: Path, question: str):
    (sample,) = read(tmp_path, {"image": "a.jpg", question: "What?", "answer": "A dog.", "title": "t"})
    assert isinstance(sample, Sample)
    assert sample.messages == (Message("user", "<image>\nWhat?"), Message("assistant", "A dog."))


def test_a_question_may_say_where_its_pictures_stand(tmp_path: Path):
    (sample,) = read(tmp_path, {"image": ["a.jpg", "b.jpg"], "question": "Is <image> or <image> it?", "answer": "Yes."})
    assert isinstance(sample, Sample) and sample.messages[0].text == "Is <image> or <image> it?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg"}, "a column is missing"),
        ({"caption": "A dog."}, "a column is missing"),
        ({"image": "a.jpg", "question": "What?"}, "a column is missing"),
        ({"image": "", "caption": "A dog."}, "the image is missing"),
        ({"image": None, "caption": "A dog."}, "the image is missing"),
        ({"image": "a.jpg", "caption": " "}, "an answer is empty"),
        ({"image": "a.jpg", "caption": ["A dog."]}, "'caption' is not a text"),
        ({"image": "a.jpg", "question": 3, "answer": "x"}, "'question' is not a text"),
        ({"image": "https://a.b/c.jpg", "caption": "A dog."}, "an image is a URL"),
        ({"image": "a.jpg", "question": "<image><image>", "answer": "x"}, "placeholders and images differ"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.jsonl'}, row 1")

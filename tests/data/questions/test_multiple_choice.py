"""ScienceQA and MMMU in the layout of their official files."""

import io
import json

import pytest
from PIL import Image

from vlm.data.image import load_image
from vlm.data.questions import QUESTIONS
from vlm.data.questions.base import Source
from vlm.errors import DataFormatError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))


def opened(name, path, **others):
    return QUESTIONS[name].open(Source(str(path), **others))


def test_scienceqa(tmp_path):
    problem = {"question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": "Look.", "image": "image.png", "subject": "natural science"}
    problems = {"1": problem, "2": problem | {"image": None, "hint": "", "answer": 0}, "3": problem}
    (tmp_path / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2"], "val": ["3"]}), encoding="utf-8")
    (tmp_path / "images").mkdir()
    seen, blind = opened("scienceqa", tmp_path).questions
    assert (seen.text, seen.answers, seen.choices, seen.candidates) == ("Context: Look.\nWhich?", ("B",), ("cat", "dog"), ("A", "B"))
    assert seen.images == (tmp_path / "images" / "test" / "1" / "image.png",) and seen.groups == {"subject": "natural science", "context": "image"}
    assert (blind.text, blind.answers, blind.images, blind.groups["context"]) == ("Which?", ("A",), (), "none")
    assert [question.id for question in opened("scienceqa", tmp_path, split="val").questions] == ["3"]
    problems["1"]["answer"] = 2
    (tmp_path / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"problem 1: 'answer' is 2, and there are 2 choices"):
        opened("scienceqa", tmp_path)


def mmmu_row(**others):
    return {
        "id": "validation_Art_1",
        "question": "Look at <image 1>.",
        "options": "['a', 'b <image 2>']",
        "answer": "B",
        "question_type": "multiple-choice",
    } | others


def test_mmmu_of_parquet_with_pictures_inside(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def picture(color):
        out = io.BytesIO()
        Image.new("RGB", (4, 4), color).save(out, format="png")
        return {"bytes": out.getvalue(), "path": None}

    rows = [
        mmmu_row(image_1=picture("red"), image_2=picture("blue")),
        mmmu_row(id="validation_Basic_Medical_Science_2", options="[]", answer="['5', 'five']", image_1=picture("red"), image_2=None),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "validation-00000-of-00001.parquet")
    choice, asked = opened("mmmu", tmp_path / "validation-00000-of-00001.parquet").questions
    assert (choice.choices, choice.answers, choice.numbered, choice.groups) == (("a", "b <image 2>"), ("B",), True, {"subject": "Art"})
    assert [load_image(path).getpixel((0, 0)) for path in choice.images] == [(255, 0, 0), (0, 0, 255)]
    assert (asked.choices, asked.answers, asked.groups) == ((), ("5", "five"), {"subject": "Basic_Medical_Science"})


def test_mmmu_of_json_rows_whose_pictures_are_files(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(mmmu_row(options=["a", "b"], image_1="one.png", answer="?")), encoding="utf-8")
    (question,) = opened("mmmu", path).questions
    assert question.images == (tmp_path / "one.png",) and question.answers == ()  # the test split's answers are not published
    path.write_text(json.dumps(mmmu_row(image_1="one.png")), encoding="utf-8")
    with pytest.raises(DataFormatError, match="names <image 2>, and 'image_2' is empty"):
        opened("mmmu", path)

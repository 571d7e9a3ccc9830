"""Rows of the user's own, and conversations of any format."""

import json

import pytest
from tiny_data import data, own_cache  # noqa: F401  fixtures

from vlm.data.manifest import Manifest, SplitFile
from vlm.data.questions import QUESTIONS
from vlm.data.questions.base import Source
from vlm.errors import ConfigError, DataFormatError


def opened(path, **others):
    return QUESTIONS["questions"].open(Source(str(path), **others))


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_rows_with_one_answer_several_or_options(tmp_path):
    several = opened(
        write(
            tmp_path / "a.jsonl",
            {"image": "a.png", "question": "What?", "answer": 3},
            {"question": "Why?", "answers": ["x", "y"], "id": "q", "type": "t"},
        )
    )
    one, two = several.questions
    assert (one.id, one.images, one.answers, several.measure) == ("1", (tmp_path / "a.png",), ("3",), "")
    assert (two.id, two.images, two.answers, two.groups) == ("q", (), ("x", "y"), {"type": "t"})
    choices = ["cat", "dog", "2"]
    rows = [{"question": "Which?", "choices": choices, "answer": answer} for answer in ("B", "dog", 1, "2")]
    options = opened(write(tmp_path / "b.jsonl", *rows))
    assert [question.answers for question in options.questions] == [("B",), ("B",), ("B",), ("C",)]  # an option goes before a number
    assert options.measure == "choices" and options.questions[0].candidates == ("A", "B", "C")


def test_faults_are_named_with_file_and_row(tmp_path):
    with pytest.raises(DataFormatError, match=r"row 1: 'answer' is missing"):
        opened(write(tmp_path / "a.jsonl", {"question": "What?"}))
    with pytest.raises(DataFormatError, match=r"row 1: the answer 'cow' is no letter, option or number of \['cat', 'dog'\]"):
        opened(write(tmp_path / "a.jsonl", {"question": "What?", "choices": ["cat", "dog"], "answer": "cow"}))
    with pytest.raises(DataFormatError, match="1 of 2 rows have 'choices', first '2'"):
        opened(write(tmp_path / "a.jsonl", {"question": "?", "answer": "x"}, {"question": "?", "answer": "A", "choices": ["x"]}))
    (tmp_path / "cut.jsonl").write_text('{"question": "?", "answer": 3.5}\n{"question": ', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"cut\.jsonl: not JSON: the file ends in the middle of a row"):
        opened(tmp_path / "cut.jsonl")
    assert opened(write(tmp_path / "n.jsonl", {"question": "How long?", "answer": 3.5})).questions[0].answers == ("3.5",)
    with pytest.raises(ConfigError, match="which has no split 'val'"):
        opened(tmp_path / "a.jsonl", split="val")


def test_ids_that_come_twice_in_published_data_get_a_number(tmp_path, own_cache):  # noqa: F811
    row = {"id": "1", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes"}]}
    (tmp_path / "twice.json").write_text(json.dumps([row, row, row]), encoding="utf-8")
    assert [question.id for question in opened(tmp_path / "twice.json").questions] == ["1", "1#2", "1#3"]


@pytest.mark.parametrize("benchmark", ["questions", "captions"])
def test_a_prepared_dataset_is_not_measured_on_its_training_split_by_default(tmp_path, benchmark):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    splits = {split: SplitFile(file=f"samples-{split}.parquet", rows=1, sha256="") for split in ("train", "test")}
    for split in splits.values():
        (folder / split.file).touch()
    Manifest(name="mine", splits=splits, sources=[], license="", citation="", options={}, dropped={}).write(folder)
    with pytest.raises(ConfigError, match="has the splits train, test: say which one to measure, such as --split test"):
        QUESTIONS[benchmark].open(Source("mine", data_root=tmp_path / "data"))


def test_of_conversations_the_first_exchange_is_asked(data):  # noqa: F811
    questions = {question.id: question for question in opened(data).questions}
    assert questions["red"].text == "<image>\nWhat color?" and questions["red"].answers == ("The color is red.",)
    assert [path.name for path in questions["two"].images] == ["red.png", "blue.png"]
    assert questions["turns"].answers == ("gray",) and questions["text"].images == ()
    with pytest.raises(ConfigError, match="--images is for rows that name pictures"):
        opened(data, images=data.parent)

import json
from pathlib import Path

import pytest

from vlm.data.formats import FORMATS
from vlm.data.sample import Dropped, Row, Sample

PAIR, MORE = {"question": "What?", "answer": "A dog."}, {"question": "Why?", "answer": "Because."}


def read(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return list(FORMATS["moondream"].read(path))


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"image": "a.jpg", "qa": [PAIR, MORE]}, ["<image>\nWhat?", "A dog.", "Why?", "Because."]),
        ({"image": ["a.jpg", "b.jpg"], "qa": [PAIR]}, ["<image><image>\nWhat?", "A dog."]),
        ({"image": "a.jpg", "qa": [PAIR, {"question": "Is <image> it?", "answer": "Yes."}]}, ["What?", "A dog.", "Is <image> it?", "Yes."]),
        ({"image": None, "qa": [PAIR]}, ["What?", "A dog."]),
        ({"image": "a.jpg", "qa": [{"question": "", "answer": "A dog."}]}, ["<image>", "A dog."]),
    ],
)
def test_pairs_are_turns(tmp_path: Path, row: object, texts: list[str]):
    (sample,) = read(tmp_path, row)
    assert isinstance(sample, Sample)
    assert [message.text for message in sample.messages] == texts


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg", "qa": {}}, "the list 'qa' is missing"),
        ({"image": "a.jpg", "qa": []}, "the answer is missing"),
        ({"image": "a.jpg", "qa": ["What?"]}, "'qa' holds no question with its answer"),
        ({"image": "a.jpg", "qa": [{"question": "What?"}]}, "'answer' is not a text"),
        ({"image": "a.jpg", "qa": [{"question": "What?", "answer": ""}]}, "an answer is empty"),
        ({"image": "a.jpg", "qa": [{"question": "<image><image>", "answer": "x"}]}, "placeholders and images differ"),
        ({"image": ["a.jpg", "b.jpg"], "qa": [{"question": "<image>", "answer": "x"}]}, "placeholders and images differ"),
        ({"image": 3, "qa": [PAIR]}, "an image is not a path"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.jsonl'}, row 1")

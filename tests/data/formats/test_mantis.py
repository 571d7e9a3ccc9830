import json
from pathlib import Path

import pytest

from vlm.data.formats import FORMATS
from vlm.data.sample import Dropped, Row, Sample
from vlm.messages import Message

ASK, ANSWER = {"role": "user", "content": "Is <image> like <image>?"}, {"role": "assistant", "content": "No."}


def read(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(FORMATS["mantis"].read(path))


def test_both_spellings_are_the_same_sample(tmp_path: Path):
    role = {"id": "m", "images": ["a.jpg", "b.jpg"], "conversation": [ASK, ANSWER]}
    speaker = {
        "id": "m",
        "images": [{"path": "a.jpg"}, {"path": "b.jpg", "bytes": None}],
        "conversations": [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "No."}],
    }
    mixed = {"id": "m", "image": ["a.jpg", "b.jpg"], "conversations": [ASK, ANSWER]}
    messages = (Message("user", "Is <image> like <image>?"), Message("assistant", "No."))
    assert read(tmp_path, role, speaker, mixed) == [Sample("m", (Path("a.jpg"), Path("b.jpg")), messages)] * 3


def test_a_written_out_picture_is_one_placeholder_and_stays_as_it_is(tmp_path: Path):
    text = "(image 1: <Image><image></Image>) (image 2: <Image><image></Image>) Same?"
    (sample,) = read(tmp_path, {"images": ["a.jpg", "b.jpg"], "conversation": [{"role": "user", "content": text}, ANSWER]})
    assert isinstance(sample, Sample) and sample.messages[0].text == text


def test_a_row_may_have_no_picture(tmp_path: Path):
    (sample,) = read(tmp_path, {"images": [], "conversation": [{"role": "user", "content": "Hello"}, ANSWER]})
    assert isinstance(sample, Sample) and sample.images == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": ["a.jpg"], "conversation": [ASK, ANSWER]}, "placeholders and images differ"),
        ({"images": ["a.jpg"] * 3, "conversation": [ASK, ANSWER]}, "placeholders and images differ"),
        ({"images": ["a.jpg", None], "conversation": [ASK, ANSWER]}, "an image is not a path"),
        ({"images": ["a.jpg", {"bytes": "x"}], "conversation": [ASK, ANSWER]}, "an image is not a path"),
        ({"images": [], "conversation": [ANSWER, ASK]}, "roles do not alternate"),
        ({"images": ["a.jpg", "b.jpg"], "conversation": [ASK]}, "the answer is missing"),
        ({"images": ["a.jpg", "b.jpg"], "conversation": [ASK, {"role": "assistant", "content": "\n"}]}, "an answer is empty"),
        ({"images": ["a.jpg", "b.jpg"], "conversation": [ASK, {"role": "assistant"}]}, "a turn is not a text"),
        ({"images": ["a.jpg", "b.jpg"], "conversation": [ASK, {"role": ["assistant"], "content": "x"}]}, "a turn is not as the format says"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.json'}, row 1")

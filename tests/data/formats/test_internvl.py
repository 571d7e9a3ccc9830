import json
from pathlib import Path

import pytest

from vlm.data.formats import FORMATS
from vlm.data.sample import Dropped, Row, Sample
from vlm.messages import Message

ASK = {"from": "human", "value": "Compare <image> with <image>."}
TEXT = {"from": "human", "value": "Why?"}
GPT = {"from": "gpt", "value": "Because."}


def read(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return list(FORMATS["internvl"].read(path))


def test_one_several_and_no_pictures(tmp_path: Path):
    one, several, *none = read(
        tmp_path,
        {"id": 0, "image": "a.jpg", "width": 4, "height": 3, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, GPT]},
        {"id": 1, "image": ["a.jpg", "b.jpg"], "width_list": [4, 5], "height_list": [3, 6], "conversations": [ASK, GPT, TEXT, GPT]},
        {"id": -1, "conversations": [TEXT, GPT]},
        {"id": -1, "image": "", "conversations": [TEXT, GPT]},
        {"id": -1, "image": [], "conversations": [TEXT, GPT]},
    )
    assert one == Sample("0", (Path("a.jpg"),), (Message("user", "<image>\nWhat?"), Message("assistant", "Because.")))
    assert isinstance(several, Sample) and several.images == (Path("a.jpg"), Path("b.jpg"))
    assert several.messages[0].text == "Compare <image> with <image>."
    text_only = Sample("-1", (), (Message("user", "Why?"), Message("assistant", "Because.")))
    assert none == [text_only] * 3


def test_stated_sizes_are_not_taken_over(tmp_path: Path):
    (sample,) = read(tmp_path, {"image": ["a.jpg", "b.jpg"], "width_list": [4, 5], "height_list": [3, 6], "conversations": [ASK, GPT]})
    assert isinstance(sample, Sample) and sample.sizes == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": ["a.jpg", "b.jpg"], "width_list": [4], "conversations": [ASK, GPT]}, "sizes and images differ"),
        ({"image": "a.jpg", "conversations": [ASK, GPT]}, "placeholders and images differ"),
        ({"image": "a.jpg", "conversations": [TEXT, GPT]}, "placeholders and images differ"),
        ({"conversations": [GPT, TEXT]}, "roles do not alternate"),
        ({"conversations": [TEXT]}, "the answer is missing"),
        ({"conversations": [TEXT, {"from": "gpt", "value": ""}]}, "an answer is empty"),
        ({"video": "a.mp4", "conversations": [TEXT, GPT]}, "videos are not read"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.jsonl'}, row 1")

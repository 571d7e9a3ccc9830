import json
from pathlib import Path

import pytest

from vlm.data.formats.llava import read_llava
from vlm.data.sample import Dropped, Sample, refuse_faulty
from vlm.errors import DataFormatError
from vlm.messages import Message

HUMAN = {"from": "human", "value": "<image>\nWhat?"}
TEXT = {"from": "human", "value": "Why?"}
GPT = {"from": "gpt", "value": " Because. \n"}


def written(tmp_path: Path, rows: object, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_image_may_be_absent_a_path_or_a_list(tmp_path: Path):
    two = {"from": "human", "value": "<image> and <image>"}
    rows = [
        {"id": "a", "conversations": [TEXT, GPT]},
        {"id": 2, "image": "b/c.png", "conversations": [HUMAN, GPT, TEXT, GPT]},
        {"image": ["x.png", "y.png"], "conversations": [two, GPT], "other": 1},
    ]
    samples = list(read_llava(written(tmp_path, rows)))
    assert [sample.images for sample in samples] == [(), (Path("b/c.png"),), (Path("x.png"), Path("y.png"))]
    assert [sample.id for sample in samples] == ["a", "2", "3"]
    assert samples[1].messages[:2] == (Message("user", "<image>\nWhat?"), Message("assistant", "Because."))


def test_a_placeholder_may_stand_in_the_middle_and_in_later_turns(tmp_path: Path):
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Is <image> it?"}, GPT, HUMAN, GPT]
    (sample,) = read_llava(written(tmp_path, [{"image": ["x.png", "y.png"], "conversations": turns}]))
    assert [message.text for message in sample.messages] == ["Be brief.", "Is <image> it?", "Because.", "<image>\nWhat?", "Because."]
    assert [message.role for message in sample.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_json_lines_are_rows(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(i), "conversations": [TEXT, GPT]}) for i in range(3)) + "\n\n", encoding="utf-8")
    assert [sample.id for sample in read_llava(path)] == ["0", "1", "2"]


FAULTS = [
    ({"text": "x"}, "the list 'conversations' is missing", r"the keys \['text'\]"),
    ({"conversations": {}}, "the list 'conversations' is missing", r"found \{\}"),
    ("text", "the row is not an object", "found 'text'"),
    ({"conversations": ["x"]}, "a turn is not as the format says", "turn 1 is 'x'"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "a turn is not as the format says", "robot"),
    ({"conversations": [{"from": "human", "value": 3}, GPT]}, "a turn is not a text", "found 3"),
    ({"conversations": [{"from": "human", "value": "\ud83d"}, GPT]}, "a turn holds half a character", r"\\ud83d"),
    ({"conversations": [GPT, TEXT]}, "roles do not alternate", "turn 1 is by the assistant"),
    ({"conversations": [TEXT, TEXT, GPT]}, "roles do not alternate", "turn 2 is by the user"),
    ({"conversations": [TEXT]}, "the answer is missing", "1 turn"),
    ({"conversations": []}, "the answer is missing", "0 turn"),
    ({"conversations": [TEXT, {"from": "gpt", "value": "  "}]}, "an answer is empty", "turn 2"),
    ({"image": 5, "conversations": [HUMAN, GPT]}, "an image is not a path", "found 5"),
    ({"image": ["x.png", ""], "conversations": [HUMAN, GPT]}, "an image is not a path", "found ''"),
    ({"image": "https://a.b/c.png", "conversations": [HUMAN, GPT]}, "an image is a URL", "Download"),
    ({"image": "x.png", "images": ["x.png"], "conversations": [HUMAN, GPT]}, "'image' and 'images' are both given", "leave one out"),
    ({"video": "x.mp4", "conversations": [TEXT, GPT]}, "videos are not read", "x.mp4"),
    ({"conversations": [HUMAN, GPT]}, "placeholders and images differ", "hold 1 <image> and the row names 0"),
    ({"image": "x.png", "conversations": [TEXT, GPT]}, "placeholders and images differ", "hold 0 <image> and the row names 1"),
]


@pytest.mark.parametrize(("row", "reason", "detail"), FAULTS)
def test_a_faulty_row_is_dropped_with_reason_file_and_number(tmp_path: Path, row: object, reason: str, detail: str):
    path = written(tmp_path, [{"conversations": [TEXT, GPT]}, row, {"conversations": [TEXT, GPT]}])
    good, dropped, after = read_llava(path)
    assert isinstance(good, Sample) and isinstance(after, Sample)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{path}, row 2")
    with pytest.raises(DataFormatError, match=rf"data\.json, row 2: {reason}: .*{detail}"):
        list(refuse_faulty(read_llava(path)))


def test_a_dropped_row_has_the_id_that_it_states(tmp_path: Path):
    assert [row.id for row in read_llava(written(tmp_path, [{"id": "q"}, {"id": 7}, {"id": []}, None]))] == ["q", "7", "3", "4"]


def test_what_is_not_json_is_an_error(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text("[{", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"data\.json, row 1: not JSON"):
        list(read_llava(path))

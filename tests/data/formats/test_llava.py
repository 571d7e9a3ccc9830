import json
from pathlib import Path

import pytest

from vlm.data.formats.llava import read_llava
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


def test_json_lines_are_rows(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(i), "conversations": [TEXT, GPT]}) for i in range(3)) + "\n\n", encoding="utf-8")
    assert [sample.id for sample in read_llava(path)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"list 'conversations' .* found keys \['text'\]"),
        ("text", "found a str"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "expected turns like"),
        ({"conversations": [{"from": "human", "value": 3}, GPT]}, "expected turns like"),
        ({"conversations": [GPT, TEXT]}, "turn 1 is by the assistant"),
        ({"conversations": [TEXT, TEXT, GPT]}, "turn 2 is by the user"),
        ({"conversations": [TEXT]}, "answer is missing"),
        ({"conversations": []}, "answer is missing"),
        ({"conversations": [TEXT, {"from": "gpt", "value": "  "}]}, "answer in turn 2 is empty"),
        ({"image": 5, "conversations": [HUMAN, GPT]}, "'image' is 5"),
        ({"id": "q", "conversations": [HUMAN, GPT]}, r"'q' has 1 <image> placeholder\(s\) .* 0 image\(s\)"),
        ({"image": "x.png", "conversations": [TEXT, GPT]}, r"0 <image> placeholder\(s\) .* 1 image\(s\)"),
    ],
)
def test_bad_row_is_named_with_file_and_number(tmp_path: Path, row: object, message: str):
    path = written(tmp_path, [{"conversations": [TEXT, GPT]}, row])
    with pytest.raises(DataFormatError, match=rf"data\.json, row 2: .*{message}"):
        list(read_llava(path))


def test_what_is_not_json_is_named(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text("[{", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"data\.json is not JSON"):
        list(read_llava(path))
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"conversations": []', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"data\.jsonl, row 1: not JSON"):
        list(read_llava(lines))
    with pytest.raises(DataFormatError, match="holds a dict"):
        list(read_llava(written(tmp_path, {"conversations": []}, "object.json")))

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from vlm.data.formats import FORMATS
from vlm.data.sample import Dropped, Row, Sample
from vlm.messages import Message

TEXT = {"type": "text", "text": "What?"}
ANSWER = {"role": "assistant", "content": "A dog."}


def read(tmp_path: Path, *rows: object, pictures: Path | None = None) -> list[Row]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return list(FORMATS["openai"].read(path, pictures=pictures))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": "a.jpg"},
        {"type": "image_url", "image_url": {"url": "file://a.jpg"}},
        {"type": "image", "image": "a.jpg"},
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "url": "a.jpg"},
        {"type": "image"},
    ],
)
def test_a_picture_may_be_written_in_many_ways(tmp_path: Path, part: dict[str, object]):
    row = {"id": "o", "messages": [{"role": "user", "content": [part, TEXT]}, ANSWER]} | ({"images": ["a.jpg"]} if part == {"type": "image"} else {})
    (sample,) = read(tmp_path, row)
    assert sample == Sample("o", (Path("a.jpg"),), (Message("user", "<image>\nWhat?"), Message("assistant", "A dog.")))


def test_pictures_are_in_reading_order(tmp_path: Path):
    content = [{"type": "text", "text": "Is <image>"}, {"type": "image", "image": "named.jpg"}, {"type": "text", "text": "or"}, {"type": "image"}]
    row = {
        "images": ["1.jpg", "2.jpg", "3.jpg"],
        "messages": [{"role": "user", "content": content}, ANSWER, {"role": "user", "content": "<image>?"}, ANSWER],
    }
    (sample,) = read(tmp_path, row)
    assert isinstance(sample, Sample)
    assert sample.images == (Path("1.jpg"), Path("named.jpg"), Path("2.jpg"), Path("3.jpg"))
    assert sample.messages[0].text == "Is <image>\n<image>\nor\n<image>"


def test_system_and_tool_messages_are_turns(tmp_path: Path):
    roles = ["developer", "user", "assistant", "tool", "tool", "assistant"]
    (sample,) = read(tmp_path, {"messages": [{"role": role, "content": role} for role in roles]})
    assert isinstance(sample, Sample) and sample.images == ()
    assert [message.role for message in sample.messages] == ["system", *roles[1:]]


def test_a_data_url_becomes_a_file(tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}, ANSWER]}
    (sample,) = read(tmp_path, row, pictures=tmp_path / "pictures")
    assert isinstance(sample, Sample)
    assert sample.images[0].is_absolute() and sample.images[0].is_relative_to(tmp_path / "pictures")
    assert sample.images[0].read_bytes() == file.getvalue()
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped) and dropped.reason == "an image is a URL"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("x", "the list 'messages' is missing"),
        (["x"], "a message is not as the format says"),
        ([{"role": "robot", "content": "x"}], "a message is not as the format says"),
        ([{"role": "user", "content": None}, ANSWER], "a content is not a text"),
        ([{"role": "user", "content": ["x"]}, ANSWER], "a part is not as the format says"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}, ANSWER], "a part is not as the format says"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.jpg"}}]}, ANSWER], "an image is a URL"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}, ANSWER], "an image is not a path"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "placeholders and images differ"),
        ([{"role": "user", "content": "<image>"}, ANSWER], "placeholders and images differ"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{}]}], "calls of tools are not read"),
        ([ANSWER], "roles do not alternate"),
        ([{"role": "user", "content": "x"}], "the answer is missing"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": []}], "an answer is empty"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}, ANSWER], "roles do not alternate"),
        ([{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,@"}]}, ANSWER], "a data URL cannot be decoded"),
        ([{"role": "user", "content": [{"type": "image", "image": "data:image/svg+xml,<svg/>"}]}, ANSWER], "a data URL is not base64"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, messages: object, reason: str):
    (dropped,) = read(tmp_path, {"messages": messages}, pictures=tmp_path / "pictures")
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.jsonl'}, row 1")


def test_more_pictures_than_placeholders_are_a_fault(tmp_path: Path):
    (dropped,) = read(tmp_path, {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "<image>"}, ANSWER]})
    assert isinstance(dropped, Dropped) and "hold 1 <image> and the row names 2" in dropped.detail

"""What holds for every format: the table says one whole row (or file) of each."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm.data.formats import FORMATS
from vlm.data.own_files import own_rows
from vlm.data.rows import to_row
from vlm.data.sample import Dropped, Sample
from vlm.errors import DataFormatError

SPOKEN = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
CHAT = [{"role": "user", "content": "Is <image> like <image>?"}, {"role": "assistant", "content": "No."}]
PARTS = [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "image"}, {"type": "text", "text": "What?"}]
EXAMPLES: dict[str, Any] = {
    "llava": [{"id": "1", "image": "a.jpg", "conversations": SPOKEN}],
    "internvl": [{"id": 1, "image": "a.jpg", "width": 4, "height_list": [3], "conversations": SPOKEN}],
    "mantis": [{"id": "1", "images": ["a.jpg", {"path": "b.jpg"}], "conversation": CHAT}],
    "cauldron": [{"images": ["a.jpg"], "texts": [{"user": "What?", "assistant": "A dog.", "source": "x"}]}],
    "interleaved": [{"images": [None, "a.jpg"], "texts": ["Dogs", None], "metadata": "{}"}],
    "question-answer": [{"image": "a.jpg", "qa": [{"question": "What?", "answer": "A dog."}]}],
    "openai": [{"images": ["b.jpg"], "messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "A dog."}]}],
    "image-text": [{"id": 1, "image": "a.jpg", "caption": "A dog."}],
    "coco-captions": {"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"id": 7, "image_id": 9, "caption": "A dog."}]},
    "karpathy": {
        "images": [{"cocoid": 9, "filepath": "val2014", "filename": "a.jpg", "split": "train", "sentences": [{"sentid": 7, "raw": "A dog."}]}],
        "dataset": "coco",
    },
}
WRONG: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "x",
    "\ud83d",
    "https://a.b/c.jpg",
    "data:image/png;base64,@",
    [],
    [None],
    [[]],
    ["x"],
    [{}],
    {},
    {"x": 1},
]


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def spoiled(value: Any) -> Iterator[Any]:
    """The value with one of its parts, at any depth, replaced or left out."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        less = copy.copy(value)
        del less[key]
        yield less
        for part in [*WRONG, *spoiled(value[key])]:
            changed = copy.copy(value)
            changed[key] = part
            yield changed


def test_every_format_has_an_example_here():
    assert {*EXAMPLES, "sharegpt4v"} == {*FORMATS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_finds_its_reader_and_no_other(tmp_path: Path, name: str):
    (tmp_path / "a.jpg").touch()
    content = EXAMPLES[name]
    first = content[0] if isinstance(content, list) else content
    assert [known for known, spec in FORMATS.items() if spec.recognizes(first)] == [name]
    files = own_rows(written(tmp_path, content), pictures=tmp_path / "pictures")
    (sample,) = files.rows
    assert isinstance(sample, Sample)
    assert sample.images[0].name == "a.jpg"
    assert files.image_root == tmp_path


def test_sharegpt4v_is_read_as_llava(tmp_path: Path):
    path = written(tmp_path, [{"id": "1", "image": "sam/images/sa_1.jpg", "conversations": SPOKEN}])
    assert list(FORMATS["sharegpt4v"].read(path)) == list(FORMATS["llava"].read(path))


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_wrong_value_is_a_dropped_row_or_an_error_of_the_file(tmp_path: Path, name: str):
    (tmp_path / "a.jpg").touch()
    counts = {Sample: 0, Dropped: 0, DataFormatError: 0}
    for content in spoiled(EXAMPLES[name]):
        path = written(tmp_path, content)
        try:
            rows = [*FORMATS[name].read(path, pictures=tmp_path / "pictures")]
        except DataFormatError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            counts[DataFormatError] += 1
            continue
        for row in rows:
            counts[type(row)] += 1
            if isinstance(row, Sample):
                json.dumps(to_row(row), ensure_ascii=False).encode("utf-8")  # can be stored
            if isinstance(row, Dropped):
                assert row.where.startswith(f"{path}, row ")
                assert row.detail.startswith(f"{row.reason}:") and row.detail.endswith(".") and "\n" not in row.detail
                assert len(row.reason) < 60
    assert counts[Dropped] > 20


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_path_to_any_wrong_value_is_read_or_refused(tmp_path: Path, name: str):
    for content in [*spoiled(EXAMPLES[name]), *WRONG]:
        try:
            list(own_rows(written(tmp_path, content), pictures=tmp_path / "pictures").rows)
        except DataFormatError as error:
            assert str(tmp_path / "data.json") in str(error)


@pytest.mark.parametrize("content", [[], [3], [{"a": 1}], {"images": [{}], "b": 1}])
def test_an_unknown_format_is_refused_with_the_keys_and_the_known_ones(tmp_path: Path, content: object):
    with pytest.raises(DataFormatError, match=r"data\.json (is of no known format: its first row has .* Known formats: .*LLaVA|has no row)"):
        own_rows(written(tmp_path, content), pictures=tmp_path)

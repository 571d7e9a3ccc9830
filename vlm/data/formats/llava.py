"""LLaVA's conversation files (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md), as JSON array or JSON lines. Opens no picture.

A row is `{"id", "image": absent, a path or a list of paths, "conversations": [{"from": "human" or "gpt", "value"}, ...]}`; further keys are ignored.
White space around a text is removed, because an answer's leading line break would melt into the prompt's last token.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message, Role

ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}


def read_llava(path: Path) -> Iterator[Sample]:
    """Samples of a LLaVA file, with image paths as the file states them.

    Args:
        path: A `.json` array or a `.jsonl` file of one row a line.

    Raises:
        DataFormatError: At the first row that is not as the format says; file and row are named. Rows count from 1.
    """
    for number, row in _rows(path):
        try:
            yield parse_row(row, default_id=str(number))
        except DataFormatError as error:
            raise DataFormatError(f"{path}, row {number}: {error}") from None


def parse_row(row: Any, *, default_id: str) -> Sample:
    """One row of a LLaVA file.

    Args:
        row: The decoded JSON value.
        default_id: Name of a row without `id`.

    Raises:
        DataFormatError: If keys, roles, answers or the number of images are not as the format says.
    """
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        keys = f"keys {sorted(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise DataFormatError(f"expected an object with a list 'conversations' (and 'id', 'image'); found {keys}.")
    return Sample(id=str(row.get("id", default_id)), images=_images(row.get("image")), messages=_messages(row["conversations"]))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path)
            return
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} is not JSON: {error}.") from None
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(rows, list):
        raise DataFormatError(f"{path} holds a {type(rows).__name__}; expected an array of conversations (one object a line is for .jsonl files).")
    yield from enumerate(rows, start=1)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataFormatError(f"{path}, row {number}: not JSON: {error}.") from None


def _images(value: Any) -> tuple[Path, ...]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataFormatError(f"'image' is {value!r}; expected a path or a list of paths.")
    return tuple(Path(name) for name in names)


def _messages(turns: list[Any]) -> tuple[Message, ...]:
    messages = [_message(turn) for turn in turns]
    spoken = messages[1:] if messages and messages[0].role == "system" else messages
    for i, message in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise DataFormatError(f"turn {i + 1} is by the {message.role}; turns alternate, so the {expected} was expected.")
        if message.role == "assistant" and not message.text:
            raise DataFormatError(f"the answer in turn {i + 1} is empty.")
    if len(spoken) % 2 or not spoken:
        raise DataFormatError(f"the answer is missing: the conversation has {len(spoken)} turn(s), and the last must be by 'gpt'.")
    return tuple(messages)


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
        raise DataFormatError(f"expected turns like {{'from': 'human' or 'gpt', 'value': text}}; found {str(turn)[:120]}.")
    return Message(role=ROLES[turn["from"]], text=turn["value"].strip())

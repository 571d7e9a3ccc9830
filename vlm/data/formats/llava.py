r"""LLaVA's conversation files (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md), as JSON array or JSON lines. Opens no picture.

    {"id": "a", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]}

`image` is absent, a path, or a list of paths; further keys are ignored. The same parser reads what grew out of this format: see `internvl` and `mantis`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.data.formats.base import Format, fields_of, finished, first_item, images_of, list_of, parse_rows, read_by_row, shown, text_of
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError
from vlm.messages import Message, Role

SPEAKERS: dict[str, Role] = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_llava(path: Path, *, pictures: Path | None = None) -> Iterator[Row]:
    """Rows of a LLaVA file, with image paths as the file states them; faulty ones are `Dropped`.

    Args:
        path: A JSON array, or JSON lines.
        pictures: Folder for pictures that lie inside the rows.

    Raises:
        DataFormatError: If the file cannot be read, or is not JSON.
    """
    return parse_rows(path, parse_row, pictures=pictures)


def parse_row(row: Any, name: str) -> Sample:
    """One row, in any spelling of its keys: `conversations` or `conversation`, `image` or `images`, `from` and `value` or `role` and `content`.

    Args:
        row: The decoded JSON value.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: If keys, roles, answers or the number of images are not as the format says.
    """
    row = fields_of(row)
    turns = list_of(row, "conversation" if "conversation" in row else "conversations")
    if row.get("video"):
        raise DataFormatError(f"videos are not read: found {shown(row['video'])}.")
    return finished(row, name, images_of(row), [_message(turn, i) for i, turn in enumerate(turns, start=1)])


def _message(turn: Any, number: int) -> Message:
    speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataFormatError(
            f"a turn is not as the format says: turn {number} is {shown(turn)}; expected 'from' ('human' or 'gpt') and 'value', or 'role' and 'content'."
        )
    return Message(role=SPEAKERS[speaker], text=text_of(turn.get("value", turn.get("content")), "a turn"))


def states_sizes(row: Mapping[str, Any]) -> bool:
    """Whether a row is InternVL's."""
    return not row.keys().isdisjoint({"width", "height", "width_list", "height_list"})


def is_multi_image(row: Mapping[str, Any]) -> bool:
    """Whether a row is Mantis's."""
    turn = first_item(row, "conversations")
    return "conversation" in row or ("conversations" in row and ("images" in row or (isinstance(turn, dict) and "role" in turn)))


def _recognizes(row: Mapping[str, Any]) -> bool:
    return "conversations" in row and not states_sizes(row) and not is_multi_image(row)


SPECS = {
    "llava": Format(
        read=read_by_row(parse_row),
        recognizes=_recognizes,
        description="LLaVA: `image` and `conversations` of `from` and `value`",
    )
}

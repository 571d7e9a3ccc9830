"""What a file format is, and the checks that every format makes of its rows. Opens no picture and knows no single format.

A fault of one row is an error whose text before the first colon is the same for every row of that fault: `parse_rows` makes a `Dropped` of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vlm.data.formats.pictures import unpack_pictures
from vlm.data.formats.sources import numbered_rows
from vlm.data.sample import Dropped, Row, Sample, check_turns
from vlm.errors import DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, Message, count_placeholders

CAPTION_REQUEST = "Describe the image."
LONGEST_SHOWN = 120  # characters of a faulty value that a message repeats
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")

Parse = Callable[[Any, str], Sample]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Attributes:
        read: Rows of a file, with image paths as the file states them. Gets the file (for Parquet, a folder of files too), and by the keyword
            `pictures` the folder where pictures that lie inside the rows are written, or None to refuse such rows.
        recognizes: Whether a file with a row of these keys and values is of this format; no row is of two formats.
        description: One line.
        aliases: Other names.
    """

    read: Callable[..., Iterator[Row]]
    recognizes: Callable[[Mapping[str, Any]], bool]
    description: str
    aliases: tuple[str, ...] = field(default=())


def read_by_row(parse: Parse) -> Callable[..., Iterator[Row]]:
    """The `read` of a format whose rows each become one sample."""
    return partial(_read, parse)


def _read(parse: Parse, path: Path, *, pictures: Path | None = None) -> Iterator[Row]:
    return parse_rows(path, parse, pictures=pictures)


def parse_rows(path: Path, parse: Parse, *, pictures: Path | None = None) -> Iterator[Row]:
    """The rows of a file as samples; faulty ones are dropped, with file, row and fault. Rows count from 1.

    Args:
        path: A JSON, CSV, TSV or Parquet file, or a Hugging Face dataset's folder.
        parse: Makes a sample of a decoded row and of the name that it has if it brings none; raises DataFormatError for a faulty one.
        pictures: Folder for the pictures that lie inside the rows.

    Raises:
        DataFormatError: If the file as a whole cannot be read.
    """
    for file, number, value in numbered_rows(path):
        name = str(number) if file == path else f"{file.stem}/{number}"
        try:
            if isinstance(value, DataFormatError):
                raise value
            yield parse(value if pictures is None else unpack_pictures(value, pictures), name)
        except DataFormatError as error:
            yield faulty(error, id=_id_or(value, name), where=f"{file}, row {number}")


def faulty(error: DataFormatError, *, id: str, where: str) -> Dropped:
    """The row of an error: the reason is what it says up to the first colon."""
    detail = str(error)
    return Dropped(id=id, reason=detail.partition(":")[0], detail=detail, where=where)


def finished(
    row: Mapping[str, Any], name: str, images: Sequence[Path], messages: Sequence[Message], extra: Mapping[str, str] | None = None
) -> Sample:
    """The sample of checked parts.

    Args:
        row: The row, for its `id`.
        name: Its name if it has no `id`.
        images: Pictures in reading order.
        messages: The turns.
        extra: What else is known.

    Raises:
        DataFormatError: If the turns cannot be trained on, or placeholders and pictures differ in number.
    """
    check_turns(messages)
    placeholders = count_placeholders(messages)
    if placeholders != len(images):
        raise DataFormatError(
            f"placeholders and images differ: the texts hold {placeholders} {IMAGE_PLACEHOLDER} and the row names {len(images)} image(s); "
            "each placeholder stands for one image."
        )
    return Sample(id=_id_or(row, name), images=tuple(images), messages=tuple(messages), extra=extra or {})


def fields_of(row: Any) -> Mapping[str, Any]:
    """A row as an object.

    Raises:
        DataFormatError: If it is none.
    """
    if not isinstance(row, dict):
        raise DataFormatError(f"the row is not an object: found {shown(row)}.")
    return row


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """A member that is a list.

    Raises:
        DataFormatError: If it is missing or something else.
    """
    if not isinstance(row.get(key), list):
        found = shown(row[key]) if key in row else f"the keys {shown(sorted(row))}"
        raise DataFormatError(f"the list {key!r} is missing: found {found}.")
    return row[key]


def text_of(value: Any, what: str) -> str:
    """A text without the white space around it: an answer's leading line break would melt into the prompt's last token.

    Raises:
        DataFormatError: If it is no text, or holds half a character.
    """
    if not isinstance(value, str):
        raise DataFormatError(f"{what} is not a text: found {shown(value)}.")
    if not _is_unicode(value):
        raise DataFormatError(f"{what} holds half a character: {shown(value)} has a lone surrogate.")
    return value.strip()


def images_of(row: Mapping[str, Any]) -> tuple[Path, ...]:
    """The pictures of `image` or `images`: absent, empty, a path, or a list of paths; a path may be an object with `path`.

    Raises:
        DataFormatError: If they are something else, or if both keys name pictures.
    """
    given = [row[key] for key in ("image", "images") if row.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise DataFormatError("'image' and 'images' are both given: leave one out.")
    values = given[0] if given and isinstance(given[0], list) else given
    return tuple(image_of(value) for value in values)


def image_of(value: Any) -> Path:
    """One picture.

    Raises:
        DataFormatError: If it is no path, or a URL.
    """
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value or "\0" in value or not _is_unicode(value):
        raise DataFormatError(f"an image is not a path: found {shown(value)}.")
    if is_url(value):
        raise DataFormatError(f"an image is a URL: {shown(value)}. Download the pictures first, and name the files.")
    return Path(value.removeprefix("file://"))


def is_url(name: str) -> bool:
    """Whether a picture's name is an address and no file's."""
    return bool(URL.match(name)) and not name.startswith("file://")


def with_placeholders(questions: Sequence[str], count: int) -> list[str]:
    """Questions about `count` pictures: these come before the first one, unless the texts say where."""
    if not count or not questions or any(IMAGE_PLACEHOLDER in question for question in questions):
        return list(questions)
    return [f"{IMAGE_PLACEHOLDER * count}\n{questions[0]}".strip(), *questions[1:]]


def pairs_of_turns(questions: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Questions and answers as turns."""
    return [turn for question, answer in zip(questions, answers, strict=True) for turn in (Message("user", question), Message("assistant", answer))]


def first_item(row: Mapping[str, Any], key: str) -> Any:
    """The first item of a member, or None if the member is no list or has none: what a file is recognized by."""
    value = row.get(key)
    return value[0] if isinstance(value, list) and value else None


def shown(value: Any) -> str:
    """A value as a message repeats it: on one line, and not at length."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _id_or(row: Any, name: str) -> str:
    value = row.get("id") if isinstance(row, dict) else None
    usable = isinstance(value, int) or (isinstance(value, str) and bool(value) and _is_unicode(value))
    return str(value) if usable else name


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

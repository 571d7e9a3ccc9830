"""Tables of pictures and texts: the rows of CSV, TSV or Parquet files, or the same as JSON. Opens no picture.

    {"image": "a.jpg", "caption": "A dog."}
    {"image": "a.jpg", "question": "What is it?", "answer": "A dog."}

A column is known by any of the usual names, in upper or lower case. A row with a question and an answer is these two; else its text is a caption.
"""

from collections.abc import Mapping
from typing import Any

from vlm.data.formats.base import (
    CAPTION_REQUEST,
    Format,
    fields_of,
    finished,
    images_of,
    pairs_of_turns,
    read_by_row,
    shown,
    text_of,
    with_placeholders,
)
from vlm.data.sample import Sample
from vlm.errors import DataFormatError

IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "path", "filepath")
CAPTION_COLUMNS = ("caption", "text", "title", "description")
QUESTION_COLUMNS = ("question", "prompt")
ANSWER_COLUMN = "answer"


def parse_row(row: Any, name: str) -> Sample:
    """One row.

    Args:
        row: The decoded row.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: If a column is missing, or its value is not as it should be.
    """
    row = _lower_case(fields_of(row))
    image, question, caption = (_column(row, names) for names in (IMAGE_COLUMNS, QUESTION_COLUMNS, CAPTION_COLUMNS))
    if not image or not ((question and ANSWER_COLUMN in row) or caption):
        raise DataFormatError(f"a column is missing: found {shown(sorted(row))}; expected {EXPECTED}.")
    images = images_of({"image": row[image]})
    if not images:
        raise DataFormatError(f"the image is missing: the column {image!r} is empty.")
    asked = text_of(row[question], f"{question!r}") if question and ANSWER_COLUMN in row else CAPTION_REQUEST
    answer = ANSWER_COLUMN if question and ANSWER_COLUMN in row else caption
    assert answer is not None
    return finished(row, name, images, pairs_of_turns(with_placeholders([asked], len(images)), [text_of(row[answer], f"{answer!r}")]))


def _column(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _lower_case(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).strip().lower(): value for key, value in row.items()}


def _recognizes(row: Mapping[str, Any]) -> bool:
    if not {"conversations", "conversation", "messages", "qa", "texts"}.isdisjoint(row):
        return False
    row = _lower_case(row)
    return bool(_column(row, IMAGE_COLUMNS) and (_column(row, CAPTION_COLUMNS) or (_column(row, QUESTION_COLUMNS) and ANSWER_COLUMN in row)))


EXPECTED = (
    f"a column {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}, and {', '.join(CAPTION_COLUMNS[:-1])} or {CAPTION_COLUMNS[-1]}, "
    f"or {' or '.join(QUESTION_COLUMNS)} with {ANSWER_COLUMN}"
)

SPECS = {
    "image-text": Format(
        read=read_by_row(parse_row),
        recognizes=_recognizes,
        description="tables: an image and a caption, or an image, a question and an answer",
    )
}

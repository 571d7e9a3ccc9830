"""The Cauldron's rows (HuggingFaceM4/the_cauldron, arXiv:2405.02246): pictures, and questions with their answers about all of them. Decodes no picture.

    {"images": ["a.jpg", "b.jpg"], "texts": [{"user": "Which is larger?", "assistant": "The first.", "source": "NLVR2"}]}

Several questions are turns of one conversation. The pictures come before the first question, unless the texts say where. Published are Parquet files with
the pictures inside; Arrow of `save_to_disk` and JSON with paths are read as well.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.data.formats.base import (
    Format,
    fields_of,
    finished,
    first_item,
    images_of,
    list_of,
    pairs_of_turns,
    parse_rows,
    read_by_row,
    shown,
    text_of,
    with_placeholders,
)
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError


def read_cauldron(path: Path, *, pictures: Path) -> Iterator[Row]:
    """Rows of a subset; faulty ones are `Dropped`.

    Args:
        path: A Parquet file, a folder of such files, or a folder of `save_to_disk`.
        pictures: Folder where the pictures are written, each once, as they are; the rows' image paths are relative to it.

    Raises:
        DataFormatError: If a file cannot be read, or there is none.
        MissingPackageError: If pyarrow is not installed.
    """
    return parse_rows(path, parse_row, pictures=pictures)


def parse_row(row: Any, name: str) -> Sample:
    """One row whose pictures are paths.

    Args:
        row: The decoded value.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: If keys, texts or the number of images are not as the format says.
    """
    row = fields_of(row)
    texts, images = list_of(row, "texts"), images_of(row)
    for i, pair in enumerate(texts, start=1):
        if not isinstance(pair, dict):
            raise DataFormatError(f"a text is not a question with its answer: text {i} is {shown(pair)}; expected 'user' and 'assistant'.")
    questions = with_placeholders([text_of(pair.get("user"), "'user'") for pair in texts], len(images))
    answers = [text_of(pair.get("assistant"), "'assistant'") for pair in texts]
    source = texts[0].get("source") if texts else None
    extra = {"source": text_of(source, "'source'")} if source is not None else {}
    return finished(row, name, images, pairs_of_turns(questions, answers), extra)


def _recognizes(row: Mapping[str, Any]) -> bool:
    return isinstance(first_item(row, "texts"), dict)


SPECS = {
    "cauldron": Format(
        read=read_by_row(parse_row),
        recognizes=_recognizes,
        description="The Cauldron: `images` and `texts` of `user` and `assistant`, with the pictures inside or their paths",
    )
}

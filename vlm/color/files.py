"""Small text files read and written whole, with errors of one line. Knows no content."""

import csv
import io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from vlm import pages
from vlm.errors import DataFormatError

write_whole = partial(pages.write_whole, remedy="Name another folder with --out.")


def read_lines(path: Path, *, what: str) -> list[str]:
    """The lines of a text file that hold anything, stripped; a byte order mark is dropped.

    Args:
        path: The file.
        what: What it is, for messages, as "The list of concepts".

    Raises:
        DataFormatError: If it cannot be read or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataFormatError(f"{what} {path} cannot be read: {reason}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataFormatError(f"{what} {path} is empty.")
    return lines


def read_rows(path: Path, *, what: str) -> list[list[str]]:
    """The rows of a CSV file, cells stripped.

    Raises:
        DataFormatError: If it cannot be read or holds nothing.
    """
    return [[cell.strip() for cell in row] for row in csv.reader(read_lines(path, what=what))]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with line feeds, as pandas writes it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()

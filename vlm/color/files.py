"""Small text files read and written whole, with errors of one line. Knows no content."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm.errors import ConfigError, DataFormatError


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


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file under a temporary name and rename it; its folder is made if it is missing.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_name(path.name + ".tmp")
        building.write_bytes(content.encode() if isinstance(content, str) else content)
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another folder with --out.") from error
    return path

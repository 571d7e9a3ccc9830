"""The Parquet files that `vlm score` writes, as batches of columns in row order. Holds one batch at a time; knows no rule of selection.

Rows count from 0 over all files, in the order in which the files are given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.errors import DataFormatError
from vlm.score.schema import pyarrow

NEEDED = ("image", "caption", "status", "cos")
ROWS_AT_ONCE = 65_536
NAMED = 8  # columns that a message lists


@dataclass(frozen=True)
class Scores:
    """Opened files of scores.

    Attributes:
        files: The files, in order.
        sizes: Rows of each.
        columns: What every file has.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    columns: tuple[str, ...]

    @cached_property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(self.sizes)

    def batches(self, *columns: str) -> Iterator[tuple[int, Any]]:
        """The number of the first row and a `pyarrow.RecordBatch` of some columns, for stretches of rows that follow each other.

        Raises:
            DataFormatError: If a file is damaged, or has changed since it was opened.
        """
        pq = pyarrow().parquet
        start = 0
        for path, size in zip(self.files, self.sizes, strict=True):
            end = start + size
            try:
                with pq.ParquetFile(path) as table:
                    for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
                        yield start, batch
                        start += batch.num_rows
            except (OSError, ValueError) as error:  # pyarrow's own errors are both
                raise _unreadable(path, error) from None
            if start != end:
                raise DataFormatError(f"{path} had {size:,} rows when it was opened and has {start - end + size:,} now. Wait until it is written.")

    def require(self, column: str, *, flag: str) -> None:
        """Make sure that there is a column.

        Raises:
            DataFormatError: If there is none of that name.
        """
        if column not in self.columns:
            raise DataFormatError(
                f"{flag} {column}: {self.files[0]} has no such column; it has {', '.join(self.columns)}. Name one, or add yours to it."
            )


def open_scores(names: Sequence[str]) -> Scores:
    """Open what `vlm score` wrote.

    Args:
        names: Parquet files, folders of them, or patterns such as `scores/part-*.parquet`; the matches of one are sorted.

    Raises:
        DataFormatError: If a name matches nothing, a file is named twice or is no Parquet file, lacks a column, or if there is no row.
        MissingPackageError: If pyarrow is not installed.
    """
    files = [file for name in names for file in _matches(name)]
    twice = [file for i, file in enumerate(files) if file.resolve() in {other.resolve() for other in files[:i]}]
    if twice:
        raise DataFormatError(f"{twice[0]} is named twice. Name each file of scores once.")
    heads = [_head(file) for file in files]
    scores = Scores(tuple(files), tuple(rows for rows, _ in heads), tuple(name for name in heads[0][1] if all(name in names for _, names in heads)))
    if not scores.num_rows:
        raise DataFormatError(f"{files[0]} has no row. Score some pairs first.")
    return scores


def _matches(name: str) -> list[Path]:
    path, root = Path(name), Path(Path(name).anchor)
    pattern = path / "*.parquet" if path.is_dir() else path
    found = [path] if path.is_file() else sorted(root.glob(str(pattern.relative_to(root))))
    if not found:
        raise DataFormatError(f"{name} matches no Parquet file. Name a file that `vlm score` wrote, its folder, or a pattern in quotation marks.")
    return found


def _head(path: Path) -> tuple[int, list[str]]:
    """Number of rows and names of columns."""
    try:
        with pyarrow().parquet.ParquetFile(path) as table:
            rows, columns = table.metadata.num_rows, list(table.schema_arrow.names)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        listed = ", ".join(columns[:NAMED]) + (", ..." if len(columns) > NAMED else "")
        raise DataFormatError(f"{path} has no column {missing[0]!r}; it has {listed}. Give a file that `vlm score` wrote.")
    return rows, columns


def _unreadable(path: Path, error: Exception) -> DataFormatError:
    said = " ".join(str(error).split()).rstrip(".")
    return DataFormatError(f"{path} cannot be read as Parquet: {said}. Give a file that `vlm score` wrote to its end.")

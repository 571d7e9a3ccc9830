"""The Parquet files that `vlm score` writes, as batches of columns in row order. Holds one batch at a time; knows no rule of selection.

Rows count from 0 over all files, in the order in which the files are given.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import DataFormatError
from vlm.score.located import Pictures
from vlm.score.parts import score_files
from vlm.score.schema import METADATA, pyarrow

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
        roots: Folders below which the relative names of their pictures lie, as the files say; empty where one does not.
        url_files: Patterns of the files that stood for URLs.
        caches: Folders that URLs were fetched to.
    """

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    columns: tuple[str, ...]
    roots: tuple[str, ...]
    url_files: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()

    def pictures(self, image_root: Path | None = None) -> Pictures:
        """Where their pictures are.

        Args:
            image_root: Folder below which relative names lie; None: as the files say.

        Raises:
            DataFormatError: If the files state several.
        """
        return Pictures(image_root or self.image_root, self.url_files, tuple(map(Path, self.caches)))

    @property
    def image_root(self) -> Path:
        """Folder below which relative names of pictures lie; that of the first file, where none is stated.

        Raises:
            DataFormatError: If the files state several.
        """
        stated = list(dict.fromkeys(self.roots))
        if len(stated) > 1:
            raise DataFormatError(
                f"The pictures lie below {stated[0] or 'no stated folder'} and {stated[1] or 'no stated folder'}: curate files of one at a time, or say "
                "--image-root."
            )
        return Path(stated[0]) if stated[0] else self.files[0].parent

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
        DataFormatError: If a name matches nothing, a folder's parts are not finished, a file is named twice or is no Parquet file, lacks a column, or if there is no row.
        MissingPackageError: If pyarrow is not installed.
    """
    files = [file for name in names for file in _matches(name)]
    twice = [file for i, file in enumerate(files) if file.resolve() in {other.resolve() for other in files[:i]}]
    if twice:
        raise DataFormatError(f"{twice[0]} is named twice. Name each file of scores once.")
    heads = [_head(file) for file in files]
    shared = tuple(name for name in heads[0].columns if all(name in head.columns for head in heads))
    url_files, caches = (tuple(dict.fromkeys(filter(None, stated))) for stated in zip(*((head.url_file, head.cache) for head in heads), strict=True))
    scores = Scores(tuple(files), tuple(head.rows for head in heads), shared, tuple(head.root for head in heads), url_files, caches)
    if not scores.num_rows:
        raise DataFormatError(f"{files[0]} has no row. Score some pairs first.")
    return scores


def _matches(name: str) -> list[Path]:
    path, root = Path(name), Path(Path(name).anchor)
    found = score_files(path) if path.exists() else sorted(root.glob(str(path.relative_to(root))))
    if not found:
        raise DataFormatError(f"{name} matches no Parquet file. Name a file that `vlm score` wrote, its folder, or a pattern in quotation marks.")
    return found


class _Head(NamedTuple):
    """What a file says of itself."""

    rows: int
    columns: list[str]
    root: str
    url_file: str
    cache: str


def _head(path: Path) -> _Head:
    try:
        with pyarrow().parquet.ParquetFile(path) as table:
            head = table.schema_arrow
            rows, columns, facts = table.metadata.num_rows, list(head.names), json.loads((head.metadata or {}).get(METADATA, b"{}"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        listed = ", ".join(columns[:NAMED]) + (", ..." if len(columns) > NAMED else "")
        raise DataFormatError(f"{path} has no column {missing[0]!r}; it has {listed}. Give a file that `vlm score` wrote.")
    return _Head(rows, columns, *(facts.get(name) or "" for name in ("image_root", "url_file", "cache")))


def _unreadable(path: Path, error: Exception) -> DataFormatError:
    said = " ".join(str(error).split()).rstrip(".")
    return DataFormatError(f"{path} cannot be read as Parquet: {said}. Give a file that `vlm score` wrote to its end.")

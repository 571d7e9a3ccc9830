"""The rows of pair tables, cut into parts of equal length; a row that cannot be used comes as one that says why. Reads tables, opens no picture."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.data.formats.pictures import DATA_URL, data_url_bytes
from vlm.data.formats.sources import CSV_SUFFIXES, FILE_SUFFIXES, csv_columns, first_rows, numbered_rows, table_files
from vlm.data.manifest import MANIFEST, Manifest
from vlm.data.rows import schema as sample_schema
from vlm.errors import ConfigError, DataFormatError, nearest
from vlm.score.schema import INSIDE, pyarrow

ROWS_LOOKED_AT = 100  # in search of the columns
ROWS_A_BATCH = 256  # of Parquet: rows may hold pictures
SAMPLE_COLUMNS = ("id", "images", "messages")  # that are read of a prepared dataset's file
PAIR_COLUMNS = ("id", "image", "caption")  # that its rows have here


@dataclass(frozen=True, slots=True)
class Pair:
    """One row.

    Attributes:
        row: Its number over all files, from 0.
        image: What names the picture; `sha256:...` of a picture that lies in the row itself.
        content: The bytes of such a picture.
        folder: Where a relative path begins, unless another folder is given.
        caption: The caption.
        references: Captions that it is compared with.
        carried: Cells that are copied into the scores.
        fault: Why the row cannot be used; empty if it can.
    """

    row: int
    image: str
    content: bytes | None
    folder: Path
    caption: str
    references: tuple[str, ...]
    carried: tuple[str | None, ...]
    fault: str = ""


@dataclass(frozen=True)
class Columns:
    """Which columns are read, and as what; `refs` may be empty."""

    image: str
    text: str
    refs: str = ""
    carry: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(name for name in (self.image, self.text, self.refs, *self.carry) if name))


class PairTable:
    """Several files of pairs as one table."""

    def __init__(self, files: Sequence[Path], columns: Columns):
        """Look at the beginning of each file.

        Raises:
            ConfigError: If a file lacks a column, or is of a kind that is not read.
            DataFormatError: If a file cannot be read.
        """
        self.files, self.columns = list(files), columns
        for path in self.files:
            check_columns(path, columns)
        folders = {_folder(path).resolve() for path in self.files}
        self.folder = folders.pop() if len(folders) == 1 else None  # where relative paths begin, if it is one for all files

    def parts(self, part_rows: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Pair] | None]]:
        """Number and rows of each part; None for the rows of parts that are not wanted.

        A part's rows are to be taken before the next part is asked for. Every part has rows, and all but the last have `part_rows`.

        Args:
            part_rows: Rows of a part.
            wanted: Says by its number whether a part's rows are made.
        """
        index, rows = 0, _Rows(self.files, self.columns)
        while rows.more():
            if wanted(index):
                pairs = rows.take(part_rows)
                yield index, pairs
                for _ in pairs:  # what the caller left
                    pass
            else:
                rows.skip(part_rows)
                yield index, None
            index += 1

    def count_parts(self, part_rows: int) -> int:
        """How many parts there are; reads the files, but no more than the footer of Parquet files."""
        return sum(1 for _ in self.parts(part_rows, lambda _: False))


class _Rows:
    """A place in the table that moves on; what is skipped in Parquet files is not read."""

    def __init__(self, files: Sequence[Path], columns: Columns):
        self.files, self.columns = [(leaf, _folder(path)) for path in files for leaf in _leaves(path)], columns
        self.row, self.file = 0, -1  # of the next row; the file that is being read
        self.values: Iterator[Any] = iter(())
        self.waiting: list[tuple[Path, Any]] = []  # at most one value, which `more` has looked at
        self.left: int | None = None  # rows behind the waiting one, of a Parquet file; None for files whose rows are not counted
        self.parquet_rows = 0

    def more(self) -> bool:
        """True if there is a row."""
        if not self.waiting:
            self._advance()
        return bool(self.waiting)

    def take(self, count: int) -> Iterator[Pair]:
        """The next rows."""
        for _ in range(count):
            if not self.more():
                return
            folder, value = self.waiting.pop()
            self.row += 1
            yield to_pair(value, self.row - 1, folder, self.columns)

    def skip(self, count: int) -> None:
        """Pass over rows."""
        while count and self.more():
            if self.left is None:
                self.waiting.clear()
                self.row, count = self.row + 1, count - 1
                passed = sum(1 for _ in islice(self.values, count))
                self.row, count = self.row + passed, count - passed
            else:  # the waiting row is of `left`
                passed = min(count, self.left + 1)
                self.waiting.clear()
                self.row, count = self.row + passed, count - passed
                self._open_parquet(first=self.parquet_rows - (self.left + 1 - passed))

    def _advance(self) -> None:
        while True:
            for value in self.values:
                self.waiting.append((self.files[self.file][1], value))
                if self.left is not None:
                    self.left -= 1
                return
            if self.file + 1 >= len(self.files):
                return
            self.file += 1
            self._open()

    def _open(self) -> None:
        path, _ = self.files[self.file]
        if path.suffix.lower() == ".parquet":
            self.parquet_rows = _num_rows(path)
            self._open_parquet(first=0)
        else:
            self.left, self.values = None, (value for *_, value in numbered_rows(path, every=True))

    def _open_parquet(self, first: int) -> None:
        self.left = self.parquet_rows - first
        self.values = _parquet_values(self.files[self.file][0], self.columns.names, first) if self.left else iter(())


def check_columns(path: Path, columns: Columns) -> None:
    """Look for the columns in the first rows of a file.

    Raises:
        ConfigError: If one is in none of them, or the file is of a kind that is not read.
        DataFormatError: If the file cannot be read, or is empty: a table of a header alone has no row, and is read.
    """
    if path.is_file() and path.suffix.lower() not in FILE_SUFFIXES:
        raise ConfigError(f"--pairs {path}: rows are read from {', '.join(FILE_SUFFIXES)}, or from a folder of Parquet files.")
    if path.suffix.lower() == ".parquet" and path.is_file():
        seen = _parquet_columns(path)
    elif path.suffix.lower() in CSV_SUFFIXES and path.is_file():
        seen = csv_columns(path)
    else:
        seen = _keys(first_rows(path, every=True)) or _keys(first_rows(path))  # strictly, where a file in another encoding looks like broken rows
    options = {columns.image: "--image-col", columns.text: "--text-col", columns.refs: "--refs-col"}
    for name in columns.names:
        if name not in seen:
            seen = [_encodable(str(other)) for other in seen]
            near = nearest(name, seen)
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ConfigError(
                f"{path} has no column {name!r}; it has {', '.join(seen) or 'none'}. {hint}Name it with {options.get(name, '--carry')}."
            )


def _keys(rows: Iterator[Any]) -> list[str]:
    """The names of the first rows' columns."""
    return list({name: None for value in islice(rows, ROWS_LOOKED_AT) if isinstance(value, Mapping) for name in value})


def _parquet_columns(path: Path) -> Sequence[str]:
    """The columns of a Parquet file as rows have them.

    Raises:
        DataFormatError: If two have one name.
    """
    with _parquet_file(path) as table:
        columns = table.schema_arrow
    names = columns.names
    if len(set(names)) < len(names):
        raise DataFormatError(f"{path} has two columns of one name: {', '.join(names)}. Rename one.")
    return PAIR_COLUMNS if _holds_samples(columns) else names


def prepared_split(name: str) -> Path | None:
    """The Parquet file of a prepared dataset's split, by `FOLDER@SPLIT`, or `FOLDER` for train or the only one; None for what is no prepared dataset.

    Raises:
        ConfigError: If it is a mix of datasets.
        UnknownNameError: If it has no such split.
    """
    base, _, split = name.rpartition("@") if "@" in name and not Path(name).exists() else (name, "", "")
    folder = Path(base)
    if not _is_prepared(folder):
        return None
    manifest = Manifest.read(folder)
    if manifest.parts:
        raise ConfigError(
            f"{base} is a mix of prepared datasets. Name them instead: {', '.join(str(folder.parent / part) for part in manifest.parts)}."
        )
    return folder / manifest.split_of(split).file


def _is_prepared(folder: Path) -> bool:
    """True for what `vlm preprocess` made; scores and cached vectors have another manifest."""
    try:
        return "splits" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _holds_samples(table: Any) -> bool:
    """True for the schema of a prepared dataset's file: other trainers' files have columns of these names, with messages of other fields."""
    samples = sample_schema()
    return all(name in table.names and table.field(name).type == samples.field(name).type for name in SAMPLE_COLUMNS)


def _pair_of(row: Mapping[str, Any]) -> Mapping[str, Any] | DataFormatError:
    """The row of a sample of a prepared dataset, with its first answer as caption, or why it is none."""
    if len(row["images"]) != 1:
        return DataFormatError(f"the sample {row['id']!r} has {len(row['images'])} pictures; a pair has one.")
    answers = (message["text"] for message in row["messages"] if message["role"] == "assistant")
    return {"id": row["id"], "image": row["images"][0], "caption": next(answers, "")}


def to_pair(value: Any, row: int, folder: Path, columns: Columns) -> Pair:
    """A row as a pair; what is wrong with it is said in its `fault`."""
    pair = _pair(value, row, folder, columns)
    carried = tuple(cell if cell is None else _encodable(cell) for cell in pair.carried)
    image, caption, fault = (_encodable(text) for text in (pair.image, pair.caption, pair.fault))
    if (image, caption, *pair.references) != (pair.image, pair.caption, *map(_encodable, pair.references)):
        fault = fault or f"a text is not valid Unicode: it holds {_odd(''.join((pair.image, pair.caption, *pair.references)))}."
    return replace(pair, image=image, caption=caption, carried=carried, fault=fault)


def _encodable(text: str) -> str:
    """A text that UTF-8 can write: JSON can name half of a surrogate pair, which becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _odd(text: str) -> str:
    """What UTF-8 cannot write of a text: surrogates that stand for bytes (PEP 383), or those of JSON."""
    return "bytes that are no UTF-8" if any("\udc80" <= letter <= "\udcff" for letter in text) else "half of a surrogate pair"


def _pair(value: Any, row: int, folder: Path, columns: Columns) -> Pair:
    cells = value if isinstance(value, Mapping) else {}
    carried = tuple(_as_text(cells.get(name)) for name in columns.carry)
    caption = cells.get(columns.text)
    if isinstance(value, Exception) or not isinstance(value, Mapping):
        fault = str(value) if isinstance(value, Exception) else f"the row is {str(value)[:80]!r}, not an object of columns."
        return Pair(row, "", None, folder, "", (), carried, fault)
    caption = "" if caption is None else caption
    said = caption if isinstance(caption, str) else str(caption)
    try:
        image, content = _picture(cells.get(columns.image), columns.image)
    except DataFormatError as error:
        return Pair(row, "", None, folder, said, (), carried, str(error))
    if not isinstance(caption, str):
        return Pair(row, image, content, folder, said, (), carried, f"the column {columns.text!r} holds {type(caption).__name__}, not text.")
    try:
        references = _references(cells.get(columns.refs), columns.refs) if columns.refs else ()
    except DataFormatError as error:
        return Pair(row, image, content, folder, said, (), carried, str(error))
    return Pair(row, image, content, folder, caption, references, carried)


def _picture(cell: Any, column: str) -> tuple[str, bytes | None]:
    """What names the picture of a cell, and its bytes if they are there.

    Raises:
        DataFormatError: If the cell names no picture.
    """
    if isinstance(cell, Mapping):  # as Hugging Face's datasets write pictures
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell.startswith(DATA_URL):
        cell = data_url_bytes(cell)
    if isinstance(cell, bytes) and cell:
        return f"{INSIDE}{hashlib.sha256(cell).hexdigest()}", cell
    if isinstance(cell, str) and cell.strip():
        return cell.strip(), None
    raise DataFormatError(f"the column {column!r} names no picture: {'it is empty' if not cell else str(cell)[:80]}.")


def _references(cell: Any, column: str) -> tuple[str, ...]:
    """The reference captions of a cell, empty ones left out.

    Raises:
        DataFormatError: If they are no texts.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            cell = [cell]  # a text that begins with a bracket
    cell = [] if cell is None else [cell] if isinstance(cell, str) else cell
    if not isinstance(cell, list) or not all(isinstance(text, str) for text in cell):
        raise DataFormatError(f"the column {column!r} holds {str(cell)[:80]}, not a text or a list of texts.")
    return tuple(dict.fromkeys(text for text in cell if text.strip()))


def _as_text(cell: Any) -> str | None:
    return cell if cell is None or isinstance(cell, str) else json.dumps(cell, default=str, ensure_ascii=False)


def _folder(path: Path) -> Path:
    """Where the relative paths in a file begin."""
    return path if path.is_dir() else path.parent


def _leaves(path: Path) -> list[Path]:
    """A folder of Parquet files as these; all else as it is."""
    if not path.is_dir() or (path / "state.json").is_file():
        return [path]
    return table_files(path)


def _parquet_file(path: Path) -> Any:
    """An opened Parquet file.

    Raises:
        DataFormatError: If it is none.
    """
    pa = pyarrow()
    try:
        return pa.parquet.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataFormatError(f"{path} cannot be read as Parquet: {' '.join(str(error).split()).rstrip('.')}.") from None


def _num_rows(path: Path) -> int:
    with _parquet_file(path) as table:
        return table.metadata.num_rows


def _parquet_values(path: Path, names: Sequence[str], first: int) -> Iterator[Any]:
    """Rows from `first` on, of the named columns alone; row groups before it are not read.

    Raises:
        DataFormatError: If the file is damaged.
    """
    pa = pyarrow()
    with _parquet_file(path) as table:
        groups = list(range(table.num_row_groups))
        while groups and first >= table.metadata.row_group(groups[0]).num_rows:
            first -= table.metadata.row_group(groups.pop(0)).num_rows
        samples = _holds_samples(table.schema_arrow)
        known = SAMPLE_COLUMNS if samples else [name for name in names if name in table.schema_arrow.names]
        try:
            batches = table.iter_batches(batch_size=ROWS_A_BATCH, row_groups=groups, columns=known)
            values = islice((value for batch in batches for value in _batch_values(batch)), first, None)
            yield from map(_pair_of, values) if samples else values
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataFormatError(f"{path} cannot be read as Parquet: {' '.join(str(error).split()).rstrip('.')}.") from None


def _batch_values(batch: Any) -> Iterator[Any]:
    """The rows of a batch; for one whose text is not UTF-8, the fault."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield DataFormatError(f"a text is not UTF-8: {error.reason}.")
            return
        for row in range(batch.num_rows):
            yield from _batch_values(batch.slice(row, 1))

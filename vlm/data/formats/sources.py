"""The rows of JSON, CSV and Parquet files and of Hugging Face datasets on disk, one at a time, as decoded values. Knows no format."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.data.formats.json_rows import beginning_of_rows, read_json_rows
from vlm.errors import DataFormatError, MissingPackageError

JSON_SUFFIXES = (".json", ".jsonl")
CSV_SUFFIXES = (".csv", ".tsv")
FILE_SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES, ".parquet")
ROWS_A_BATCH = 64  # of Parquet: rows may hold pictures
DELIMITERS = ",;\t|"  # of `.csv` files: Excel writes semicolons where the comma is the decimal mark
LONGEST_CELL = 2**24  # characters; Python's own limit of 131,072 is short for a document
AS_UTF8 = "Save it as 'CSV UTF-8'."
STRAY_MARK = "A quotation mark may be missing; inside a quoted text it is doubled."
SPLIT_NAMES = ("train", "validation", "valid", "val", "test")  # what Hugging Face's files of several splits begin with


def numbered_rows(path: Path, *, every: bool = False) -> Iterator[tuple[Path, int, Any]]:
    """File, number and value of each row, or the error that stands for a row without a value. Rows of a file count from 1, without a table's header.

    Args:
        path: A file, or a folder of Parquet files or of `save_to_disk`.
        every: Whether a row of a CSV file whose cells are all empty is one (a blank line never is), and a row of CSV or JSON that is not UTF-8: its texts then
            hold surrogates for the bytes that are no text, and it is the caller's to refuse them. Otherwise the file is refused.

    Raises:
        DataFormatError: If the file or folder cannot be read as what it claims to be.
        MissingPackageError: If pyarrow is needed and not installed.
    """
    if path.suffix.lower() in JSON_SUFFIXES and not path.is_dir():
        for number, value in read_json_rows(path, errors=_errors(every)):
            yield path, number, value
    elif path.suffix.lower() in CSV_SUFFIXES and not path.is_dir():
        yield from _csv_rows(path, every)
    else:
        for file in table_files(path):
            yield from _parquet_rows(file) if file.suffix == ".parquet" else _arrow_rows(file)


def _errors(every: bool) -> str:
    """What becomes of bytes that are no UTF-8."""
    return "surrogateescape" if every else "strict"


def first_rows(path: Path, *, every: bool = False) -> Iterator[Any]:
    """The values of the rows, or the errors that stand for them, for a look at the first ones' keys; of a very long object its beginning.

    Args:
        path: A file or folder.
        every: See `numbered_rows`.

    Raises:
        DataFormatError: If the file has no row, or cannot be read.
    """
    is_json = path.suffix.lower() in JSON_SUFFIXES and not path.is_dir()
    empty = True
    for *_, value in beginning_of_rows(path, errors=_errors(every)) if is_json else numbered_rows(path, every=every):
        empty = False
        yield value
    if empty:
        raise DataFormatError(f"{path} has no row.")


def table_files(path: Path) -> list[Path]:
    """The Parquet or Arrow files of a dataset: the file itself, those of a folder of Parquet files, or those that `save_to_disk` wrote.

    Raises:
        DataFormatError: If there is none, or if the folder holds several splits.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataFormatError(f"There is no file or folder {path}.")
    if (path / "dataset_dict.json").is_file():
        splits = _members(path / "dataset_dict.json", "splits")
        raise DataFormatError(
            f"{path} holds the splits {', '.join(map(str, splits))}; name the folder of one of them, such as {path / str(splits[0])}."
        )
    if (path / "state.json").is_file():
        return [
            path / str(file["filename"]) for file in _members(path / "state.json", "_data_files") if isinstance(file, dict) and "filename" in file
        ]
    files = sorted(path.rglob("*.parquet"))
    splits = sorted({name for file in files for name in SPLIT_NAMES if file.name.startswith((f"{name}-", f"{name}."))})
    if len(splits) > 1:
        raise DataFormatError(f"{path} holds Parquet files of the splits {', '.join(splits)}; put those of one split into a folder of its own.")
    if not files:
        raise DataFormatError(f"{path} holds no Parquet file and is no folder of `save_to_disk`.")
    return files


def _members(path: Path, key: str) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path} is damaged ({error!r}). Save the dataset again.") from None
    if not isinstance(value, list) or not value:
        raise DataFormatError(f"{path} is damaged: {key!r} lists nothing. Save the dataset again.")
    return value


def _csv_rows(path: Path, every: bool) -> Iterator[tuple[Path, int, Any]]:
    """Rows as objects of texts by header."""
    number = 0
    try:
        with _csv_reader(path, _errors(every)) as reader:
            header = _header(path, reader)
            for cells in _cells(reader):
                if isinstance(cells, DataFormatError) or any(cells) or (every and len(cells) > 1):
                    number += 1
                    yield path, number, _named(header, cells)
    except csv.Error as error:
        raise DataFormatError(f"{path}, row {number + 1}: not a table: {error}. {STRAY_MARK}") from None
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} is not UTF-8 at or after row {number + 1}: {error.reason}. {AS_UTF8}") from None
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror}.") from None


def csv_columns(path: Path) -> list[str]:
    """The names in the header of a table, which may have no row.

    Raises:
        DataFormatError: If the file cannot be read, has no header, or one with a name twice.
    """
    try:
        with _csv_reader(path, "surrogateescape") as reader:
            header = _header(path, reader)
    except csv.Error as error:
        raise DataFormatError(f"{path}: its header is not that of a table: {error}. {STRAY_MARK}") from None
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror}.") from None
    if not header:
        raise DataFormatError(f"{path} has no row.")
    return header


@contextmanager
def _csv_reader(path: Path, errors: str) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="", errors=errors) as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline())
        file.seek(0)
        yield csv.reader(file, delimiter=delimiter, strict=True)


def _header(path: Path, reader: Any) -> list[str]:
    """The names in the first line.

    Raises:
        DataFormatError: If two are the same, or one is not UTF-8.
    """
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header):
        raise DataFormatError(f"{path} has a header twice: {header}. Rename one.")
    try:
        "".join(header).encode()
    except UnicodeEncodeError:
        raise DataFormatError(f"{path} is not UTF-8: its header holds other bytes. {AS_UTF8}") from None
    return header


def _cells(reader: Any) -> Iterator[list[str] | DataFormatError]:
    """The cells of each row, or the fault of a line that is no row.

    Raises:
        csv.Error: At a fault behind the end of a line, when nobody knows where the next row begins.
    """
    while True:
        line = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line + 1 or "end of data" in str(error):
                raise
            yield DataFormatError(f"not a row of a table: {error}. {STRAY_MARK}")


def _named(header: list[str], cells: list[str] | DataFormatError) -> dict[str, str] | DataFormatError:
    if isinstance(cells, DataFormatError):
        return cells
    if len(cells) != len(header):
        return DataFormatError(f"the number of cells differs: the header has {len(header)}, the row {len(cells)}.")
    return dict(zip(header, cells, strict=True))


def _delimiter(header: str) -> str:
    """What parts a header into most names; `csv.Sniffer` guesses by the texts below, and mistakes commas of a sentence for it."""
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _parquet_rows(path: Path) -> Iterator[tuple[Path, int, Any]]:
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as table:
            yield from _batch_rows(path, table.iter_batches(batch_size=ROWS_A_BATCH))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataFormatError(f"{path} cannot be read as Parquet: {_one_line(error)}.") from None


def _arrow_rows(path: Path) -> Iterator[tuple[Path, int, Any]]:
    pa = _pyarrow()
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            yield from _batch_rows(path, (piece for batch in batches for piece in _pieces(batch)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataFormatError(f"{path} cannot be read as Arrow: {_one_line(error)}.") from None


def _pieces(batch: Any) -> Iterator[Any]:
    return (batch.slice(start, ROWS_A_BATCH) for start in range(0, batch.num_rows, ROWS_A_BATCH))


def _batch_rows(path: Path, batches: Iterator[Any]) -> Iterator[tuple[Path, int, Any]]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield path, number, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError("datasets", needed_for="Reading Parquet and Arrow files", extra="data") from None
    return pyarrow

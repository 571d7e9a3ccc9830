"""Which of equal rows are dropped: a 64-bit hash of each, in files on disk by a part of the hash, sorted one file at a time. Knows no column's meaning.

A row takes 20 bytes on disk while this runs. Memory does not grow with the rows: a file holds 4 million of them, and takes some 350 MB while it is sorted.
Of 100 million different rows two have the same hash with a chance of 1 in 3,700.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from vlm.errors import ConfigError

ROWS_OF_FILE = 1 << 22
RECORD = np.dtype([("digest", "<u8"), ("key", "<u4"), ("row", "<i8")])

Hashed = tuple[Int[np.ndarray, " n"], UInt64[np.ndarray, " n"], UInt32[np.ndarray, " n"]]  # rows, digests, and keys: the higher, the better


def digests(texts: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of BLAKE2b of each text, the same in every process."""
    hashed = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(hashed), dtype="<u8")


def worse_of_equals(parts: Iterable[Hashed], *, num_rows: int, scratch: Path, rows_of_file: int = ROWS_OF_FILE) -> Iterator[Int[np.ndarray, " m"]]:
    """Rows whose digest a better row has; of equally good ones the first is the better.

    Args:
        parts: Rows in ascending order, in pieces.
        num_rows: At most so many of them; decides the number of files.
        scratch: Folder that has room for 20 bytes a row; nothing stays in it.
        rows_of_file: Rows that are sorted at once.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    num_files = -(-num_rows // rows_of_file)
    try:
        with tempfile.TemporaryDirectory(prefix=".duplicates-", dir=scratch) as folder:
            files = [Path(folder) / f"{i:05}.bin" for i in range(num_files)]
            _spread(parts, files)
            for file in files:
                yield _worse(np.fromfile(file, dtype=RECORD))
    except OSError as error:
        raise ConfigError(f"Cannot write to {scratch} ({error.strerror or error}). Free 20 bytes a row there, or write to another folder.") from error


def _spread(parts: Iterable[Hashed], files: list[Path]) -> None:
    with ExitStack() as opened:
        handles = [opened.enter_context(file.open("wb")) for file in files]
        for rows, hashes, keys in parts:
            records = np.empty(len(rows), dtype=RECORD)
            records["digest"], records["key"], records["row"] = hashes, keys, rows
            owners = hashes % np.uint64(len(files))
            for i in np.unique(owners):
                handles[i].write(records[owners == i].tobytes())


def _worse(records: np.ndarray) -> Int[np.ndarray, " m"]:
    order = np.lexsort((~records["key"], records["digest"]))  # stable: rows are in ascending order already
    ordered = records["digest"][order]
    return np.sort(records["row"][order[1:][ordered[1:] == ordered[:-1]]])

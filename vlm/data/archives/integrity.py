"""Whether a file on disk is what it should be: its kind by its first and last bytes, its size, its checksum. Knows no network and unpacks nothing."""

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from vlm.data.datasets.base import Archive
from vlm.errors import DataFormatError

HEAD = 1024  # bytes that tell the kind: a tar header is 512, and a JSON file may begin with white space
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HTML_SUFFIXES = (".html", ".htm")
MAGIC = {  # first bytes by suffix; a zip file may be empty or one of several volumes
    ".zip": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
    ".zst": (b"\x28\xb5\x2f\xfd",),
    ".parquet": (b"PAR1",),
    ".json": (b"[", b"{"),
    ".jsonl": (b"[", b"{"),
}
ENDS = {".parquet": (b"PAR1",), ".json": (b"]", b"}"), ".jsonl": (b"]", b"}")}  # last bytes by suffix, but for white space
TAIL = 1024  # bytes at the end of a file that are looked at
ALGORITHMS = ("sha256", "md5")


def check_head(name: str, head: bytes, *, origin: str) -> None:
    """Compare the first bytes of a file with its suffix; a web page is never anything else than .html.

    Args:
        name: Name of the file, with the suffix.
        head: The first `HEAD` bytes of the file, or all.
        origin: URL or path, for the message.

    Raises:
        DataFormatError: If they do not fit.
    """
    suffix = Path(name).suffix.lower()
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if suffix not in HTML_SUFFIXES and text[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DataFormatError(f"{origin} is a web page, not the file {name}. {_get_again(suffix)}")
    fits = _is_tar(head) if suffix == ".tar" else (text if suffix.startswith(".json") else head).startswith(MAGIC.get(suffix, b""))
    if not head or not fits:
        seen = f"begins with {head[:12]!r}" if head else "is empty"
        raise DataFormatError(f"{origin} is not a {suffix or 'data'} file: it {seen}. {_get_again(suffix)}")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")  # compares the header's own checksum
    except tarfile.HeaderError:
        return False
    return True


def _get_again(suffix: str) -> str:
    kind = f"{suffix} file" if suffix else "file"
    return f"Get the {kind} itself from its publisher, and give its folder with --from-archives."


def check_file(path: Path, archive: Archive, *, origin: str = "") -> None:
    """Compare a file with what is known of it: size, first and last bytes, checksum.

    Args:
        path: The file.
        archive: What it should be.
        origin: URL or path, for the message; empty: the path.

    Raises:
        DataFormatError: At the first difference, with what was seen and what was wanted.
    """
    origin = origin or str(path)
    size = path.stat().st_size
    if archive.size and size != archive.size:
        raise DataFormatError(wrong_size(origin, seen=size, wanted=archive.size))
    with path.open("rb") as file:
        check_head(archive.file, file.read(HEAD), origin=origin)
        if not _ends_well(file, Path(archive.file).suffix.lower(), size):
            raise DataFormatError(f"{origin} is cut short: its {size:,} bytes do not end as a file {archive.file} does. Get it again.")
    if archive.checksum and (seen := checksum(path, archive.checksum)) != archive.checksum.lower():
        raise DataFormatError(
            f"{origin} has the checksum {seen}, wanted {archive.checksum}. Get it again, or a newer vlm if its publisher changed it."
        )


def _ends_well(file: BinaryIO, suffix: str, size: int) -> bool:
    """Whether the end of a file is there, as far as its kind has one that is quickly found."""
    if suffix == ".zip":
        return zipfile.is_zipfile(file)  # finds the directory of its members, which stands at the end
    file.seek(max(0, size - TAIL))
    return file.read().rstrip(b" \t\r\n").endswith(ENDS.get(suffix, b""))


def wrong_size(origin: str, *, seen: int, wanted: int) -> str:
    """The sentence about a size that differs, in bytes."""
    return f"{origin} has {seen:,} bytes, wanted {wanted:,}. Get it again, or a newer vlm if its publisher changed it."


def checksum(path: Path, like: str) -> str:
    """Checksum of a file as `<algorithm>:<hex>`.

    Args:
        path: The file.
        like: A checksum that begins with the algorithm to use: sha256 or md5.

    Raises:
        ValueError: If it begins with something else.
    """
    algorithm = like.partition(":")[0]
    if algorithm not in ALGORITHMS:
        raise ValueError(f"A checksum begins with {' or '.join(f'{name}:' for name in ALGORITHMS)}; got {like!r}.")
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def check_once(path: Path, archive: Archive, record: Path) -> None:
    """`check_file`, but a checksum that was right is remembered, and is not computed again for the unchanged file.

    Args:
        path: The file.
        archive: What it should be.
        record: Where to remember it.

    Raises:
        DataFormatError: If the file is not what it should be.
    """
    if not archive.checksum or read_note(record) != _identity(path, archive):
        check_file(path, archive)
        remember(path, archive, record)


def remember(path: Path, archive: Archive, record: Path) -> None:
    """Note that the checksum of a file was right; archives without a checksum need no note."""
    if archive.checksum:
        write_note(record, _identity(path, archive))


def _identity(path: Path, archive: Archive) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "checksum": archive.checksum.lower()}


def read_note(path: Path) -> dict[str, Any]:
    """The values of a small JSON file; none if it is missing or damaged, as if nothing had been noted."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_note(path: Path, values: dict[str, Any]) -> None:
    """Write a small JSON file in one step."""
    new = path.with_name(path.name + ".tmp")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(json.dumps(values) + "\n", encoding="utf-8")
    new.replace(path)

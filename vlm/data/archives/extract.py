"""Zip and tar archives to folders. Trusts no archive: names, links, sizes and checksums are looked at before a file gets its name. Knows no dataset.

Beside the target, `<target>.begun` says that an extraction is under way or was interrupted, `<target>.done` that it is complete, each for which archive.
"""

import logging
import lzma
import re
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vlm.data.archives.download import check_space
from vlm.data.archives.integrity import read_note, write_note
from vlm.data.archives.meter import Meter, NoMeter
from vlm.data.archives.transfer import alone
from vlm.errors import ConfigError, DataFormatError

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PYTHON_WITH_ZSTD = (3, 14)
CHUNK = 1024 * 1024  # bytes of one copy
MAX_RATIO = 1000  # bytes out for one byte of the archive: no dataset comes near, and deflate's own limit is 1,032; bombs reach millions
HARMLESS = 1 << 30  # bytes that fit on any disk, whatever the ratio: a small file of zeros is no bomb
ENCRYPTED = 0x1  # bit of a zip member's flags (APPNOTE 4.4.4)
# what the libraries raise for broken archives
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, UnicodeDecodeError, NotImplementedError)


def is_archive(name: str | Path) -> bool:
    """Whether `extract` takes a file of this name; a compressed single file is no archive."""
    return str(name).lower().endswith((".zip", *TAR_SUFFIXES))


def extract(archive: Path, target: Path, *, meter: Meter | None = None) -> Path:
    """Extract an archive, go on where an earlier extraction was interrupted, or find it extracted.

    Folders that hold no file are not made, nor what macOS adds (`__MACOSX`, `._*`, `.DS_Store`); links and devices are left out and counted in a warning. Modes
    and times of files are not carried over.

    Args:
        archive: Zip or tar file.
        target: Folder for its members; one that was extracted from another archive before is replaced.
        meter: Shows the progress, under the name of the archive.

    Returns:
        The target.

    Raises:
        DataFormatError: If the archive is damaged, cut short, encrypted, a bomb, or holds names that lead out of the target or come twice.
        ConfigError: If there is no room, the target cannot be written, or another process is at it.
    """
    begun, done = target.with_name(target.name + ".begun"), target.with_name(target.name + ".done")
    temporary = target.with_name(target.name + ".tmp")

    def complete() -> bool:
        return target.is_dir() and read_note(done) == this

    try:
        status = archive.stat()
        this = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        if complete():
            return target
        with alone(target):
            if complete():  # by another process, since the first look
                return target
            resumed = target.is_dir() and read_note(begun) == this
            if not resumed:
                _clear(target, begun, done)
                write_note(begun, this)
            try:
                _extract(archive, _Tree(archive, status.st_size, target, temporary, resumed), meter or NoMeter())
            finally:
                temporary.unlink(missing_ok=True)
            begun.replace(done)
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise _damaged(archive, error) from error
        reason = f"{error.strerror}: {error.filename or target}"
        raise ConfigError(f"{archive} cannot be extracted ({reason}). Set its permissions, free space there, or choose another folder.") from error
    return target


def _clear(target: Path, begun: Path, done: Path) -> None:
    """Remove what was extracted from another archive.

    Raises:
        ConfigError: If the target is something that no extraction made.
    """
    if begun.exists() or done.exists():
        write_note(begun, {})  # of no archive: what is left if this is interrupted belongs to none
        done.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and was not extracted from an archive here. Move it away, or choose another folder.")
    target.mkdir(parents=True, exist_ok=True)


@dataclass
class _Tree:
    """The files that an archive makes below a folder.

    Attributes:
        archive: The archive, for messages.
        packed: Its size in bytes.
        target: The folder.
        temporary: Where a file lies until it is complete.
        resumed: Whether files of an earlier extraction may be there.
        placed: What is known of each member so far, by its path.
        left_out: Names of links and devices.
        folders: Folders that are there.
    """

    archive: Path
    packed: int
    target: Path
    temporary: Path
    resumed: bool
    placed: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)

    def place(self, name: str, *, regular: bool, size: int, crc: int | None) -> Path | None:
        """Where a member belongs; None if it is left out.

        Raises:
            DataFormatError: If the name leads out of the folder, or came before with other content.
        """
        path = PurePosixPath(name.replace("\\", "/"))  # some programs for Windows write backslashes
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name or not path.parts:
            raise DataFormatError(
                f"{self.archive} holds the name {name!r}, which leads out of its folder. Do not use this archive; get another copy."
            )
        if path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store":
            return None
        if not regular:
            self.left_out.append(name)
            return None
        if (before := self.placed.get(str(path))) is not None:
            if crc is None or before != (size, crc):
                raise DataFormatError(f"{self.archive} holds {name!r} twice; which one is meant cannot be known. Extract and pack it again by hand.")
            return None
        self.placed[str(path)] = (size, crc)
        return self.target / path

    def holds(self, path: Path, *, size: int, crc: int | None) -> bool:
        """Whether an interrupted extraction has completed this file; a tar file has no checksums, so there the size decides."""
        if not self.resumed:
            return False
        try:
            if path.stat().st_size != size:
                return False
            if crc is None:
                return True
            with path.open("rb") as file:
                seen = 0
                while chunk := file.read(CHUNK):
                    seen = zlib.crc32(chunk, seen)
            return seen == crc
        except FileNotFoundError:
            return False

    def store(self, path: Path, source: Callable[[], AbstractContextManager[IO[bytes]]], *, size: int) -> None:
        """Write one file.

        Raises:
            DataFormatError: If the archive is damaged there; with the name.
        """
        if path.parent not in self.folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        try:
            with source() as member, self.temporary.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK)
                seen = file.tell()
        except DAMAGE as error:
            raise _damaged(self.archive, error, member=path.relative_to(self.target).as_posix()) from error
        if seen != size:
            raise _damaged(self.archive, f"{seen:,} bytes instead of {size:,}", member=path.relative_to(self.target).as_posix())
        self.temporary.replace(path)

    def check_ratio(self, total: int) -> None:
        """Refuse an archive out of which comes too much.

        Args:
            total: Bytes of all members, so far or altogether.

        Raises:
            DataFormatError: If that is more than an honest archive holds.
        """
        if total > max(HARMLESS, MAX_RATIO * self.packed):
            raise DataFormatError(
                f"{self.archive} claims to hold {total:,} bytes, over {MAX_RATIO} times its own size, as bombs do. Do not use it; get another copy."
            )


def _damaged(archive: Path, said: object, *, member: str = "") -> DataFormatError:
    where = f"the member {member!r} is damaged" if member else "it is damaged or cut short"
    return DataFormatError(
        f"{archive} cannot be extracted: {where} ({' '.join(str(said).split()) or type(said).__name__}). Delete it and get it again."
    )


def _extract(archive: Path, tree: _Tree, meter: Meter) -> None:
    if not is_archive(archive):
        raise DataFormatError(f"{archive} is no archive; known are .zip, {', '.join(TAR_SUFFIXES)}.")
    if archive.suffix.lower() == ".zst" and sys.version_info < PYTHON_WITH_ZSTD:
        raise DataFormatError(f"{archive} is compressed with zstd, which Python reads from 3.14 on. Make it a .tar by hand: zstd -d {archive.name}")
    try:
        (_unzip if archive.suffix.lower() == ".zip" else _untar)(archive, tree, meter)
    except DAMAGE as error:
        raise _damaged(archive, error) from error
    if tree.left_out:
        log.warning("%s: %d links or devices left out, the first is %s", archive.name, len(tree.left_out), tree.left_out[0])
    meter.done(archive.name)


def _unzip(archive: Path, tree: _Tree, meter: Meter) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = [(info, path) for info in opened.infolist() if (path := _place_zipped(info, tree))]
        total = sum(info.file_size for info, _ in members)
        tree.check_ratio(total)
        meter.start(archive.name, total)
        missing: list[tuple[zipfile.ZipInfo, Path]] = []
        for info, path in members:
            if tree.holds(path, size=info.file_size, crc=info.CRC):
                meter.advance(archive.name, info.file_size)
            else:
                missing.append((info, path))
        check_space(tree.target, needed=sum(info.file_size for info, _ in missing))
        for info, path in missing:
            tree.store(path, lambda info=info: opened.open(info), size=info.file_size)
            meter.advance(archive.name, info.file_size)


def _place_zipped(info: zipfile.ZipInfo, tree: _Tree) -> Path | None:
    if info.is_dir():
        return None
    if info.flag_bits & ENCRYPTED:
        raise DataFormatError(f"{tree.archive} is encrypted ({info.filename!r}). Extract it by hand with its password, and pack it again without.")
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the packing program knows no modes
    return tree.place(info.filename, regular=kind in (0, stat.S_IFREG), size=info.file_size, crc=info.CRC)


def _untar(archive: Path, tree: _Tree, meter: Meter) -> None:
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as opened:
        meter.start(archive.name, archive.stat().st_size)
        free, total, before = shutil.disk_usage(tree.target).free, 0, 0
        kept: list[Any] = opened.members  # type: ignore[missing-attribute]  documented, and not in the stubs
        while (member := opened.next()) is not None:
            kept.clear()  # they would be kept until the end, and there may be millions
            path = None if member.isdir() else tree.place(member.name, regular=member.isreg(), size=member.size, crc=None)
            if path and not tree.holds(path, size=member.size, crc=None):
                total += member.size
                tree.check_ratio(total)
                if total > free:
                    check_space(tree.target, needed=member.size)
                tree.store(path, lambda member=member: _opened(opened, member), size=member.size)
            meter.advance(archive.name, raw.tell() - before)
            before = raw.tell()
        _check_end(opened)


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    return source


def _check_end(archive: tarfile.TarFile) -> None:
    """A tar file ends with a block of zeros and nothing else; `tarfile` takes a broken header or a cut between members for the end as well.

    Reading on to the end lets a compressed stream compare its checksum, too.
    """
    stream: Any = archive.fileobj
    if stream.tell() < archive.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end is missing")
    while chunk := stream.read(CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"something else than a member follows at byte {archive.offset:,}")

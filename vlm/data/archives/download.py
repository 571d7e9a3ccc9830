"""The archives of datasets on disk: downloaded several at a time, or found in a folder that the user gives. Knows no dataset; unpacks nothing.

Beside a complete `<file>` lies `<file>.verified` where its publisher states a checksum: it is compared once, and again only if the file changes.
"""

import logging
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from rich.filesize import decimal

from vlm.data.archives.integrity import check_once, remember
from vlm.data.archives.meter import Meter, NoMeter
from vlm.data.archives.transfer import DownloadError, Transfer, part_size
from vlm.data.datasets.base import Archive
from vlm.errors import ConfigError, DataFormatError

__all__ = ["DownloadError", "Meter", "check_space", "fetch"]

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 2.0  # for transfers to write their last chunk after an error or an interrupt; a silent server is not waited for


def fetch(
    archives: Sequence[Archive],
    folder: Path,
    *,
    mirror: str = "",
    from_archives: Path | None = None,
    parallel: int = 4,
    meter: Meter | None = None,
    downloaded: Callable[[str], None] = lambda file: None,
) -> dict[str, Path]:
    """Have archives on disk, complete and checked; what is there already is not downloaded again.

    Args:
        archives: What is wanted; the same archive twice is one file.
        folder: Where downloads lie, each as `<folder>/<archive.file>`.
        mirror: URL or folder that has the files under their names, asked instead of their publishers.
        from_archives: Folder in which the user has put the files, under their names or those of their URLs; they are used there, and nothing is downloaded.
        parallel: Downloads at a time.
        meter: Shows the progress.
        downloaded: Told the `file` of each archive when it is complete, whatever becomes of the others; called from several threads.

    Returns:
        The path of each archive by its `file`.

    Raises:
        ConfigError: If there is no room, a folder cannot be written, or a file that must be given is not.
        DownloadError: If a server does not give a file.
        DataFormatError: If what it gives, or what was given, is not the file that it should be.
        ValueError: If two different archives have one name, or a name leads out of the folder.
    """
    wanted = _distinct(archives)
    if parallel < 1:
        raise ConfigError(f"At least one download runs at a time; got {parallel}.")
    if mirror and from_archives is not None:
        raise ConfigError(f"Archives come from one place: got --from-archives {from_archives} and --mirror {mirror}. Give one of them.")
    try:
        if from_archives is not None:
            return _given(wanted, from_archives, folder)
        missing = [archive for archive in wanted if not _is_there(archive, folder)]
        _download(missing, _urls(missing, folder, mirror), folder, parallel, meter or NoMeter(), downloaded)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or folder}"
        raise ConfigError(
            f"The archives cannot be read or written ({reason}). Set its permissions, free space there, or choose another folder."
        ) from error
    return {archive.file: folder / archive.file for archive in wanted}


def check_space(folder: Path, *, needed: int) -> None:
    """Make sure that a disk has room.

    Args:
        folder: Where files will be written; it need not exist.
        needed: Bytes.

    Raises:
        ConfigError: If less is free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(f"{folder} needs {decimal(needed)} more, its disk has {decimal(free)} free. Free space there, or choose another folder.")


def _distinct(archives: Sequence[Archive]) -> list[Archive]:
    """Each archive once, in order."""
    distinct: dict[str, Archive] = {}
    for archive in archives:
        name = PurePosixPath(archive.file)
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise ValueError(f"The name {archive.file!r} of an archive leads out of its folder; give it a plain name.")
        other = distinct.setdefault(archive.file.casefold(), archive)  # some disks do not tell cases apart
        if (other.file, other.url, other.size, other.checksum) != (archive.file, archive.url, archive.size, archive.checksum):
            raise ValueError(f"Two archives have the name {archive.file!r}: {other} and {archive}. Give them different names.")
    return list(distinct.values())


def _is_there(archive: Archive, folder: Path) -> bool:
    path = folder / archive.file
    if not path.exists():
        return False
    try:
        check_once(path, archive, _record(archive, folder))
    except DataFormatError as error:
        log.warning("%s Downloading it anew.", error)
        return False
    return True


def _record(archive: Archive, folder: Path) -> Path:
    return folder / f"{archive.file}.verified"


def _given(archives: Sequence[Archive], given: Path, folder: Path) -> dict[str, Path]:
    """Every archive in the user's folder, checked."""
    if not given.is_dir():
        raise ConfigError(f"--from-archives {given} is not a folder. Give the folder in which the archives lie.")
    last_parts = Counter(_last_part(archive.url) for archive in archives)
    names = {archive.file for archive in archives}
    places: dict[str, Path] = {}
    for archive in archives:
        path, last = given / archive.file, _last_part(archive.url)
        if not path.is_file() and last and last_parts[last] == 1 and last not in names:
            path = given / last
        places[archive.file] = path
    _refuse_missing([archive for archive in archives if not places[archive.file].is_file()], given)
    for archive in archives:
        check_once(places[archive.file], archive, _record(archive, folder))
    return places


def _last_part(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


def _refuse_missing(missing: Sequence[Archive], given: Path) -> None:
    if missing:
        raise ConfigError(f"{given} lacks {_listed(missing)}. Get them by hand and put them there under these names.")


def _listed(archives: Sequence[Archive]) -> str:
    """`a.zip (1.2 GB, https://...), b.zip (size not known, https://...)`."""
    return ", ".join(
        f"{archive.file} ({decimal(archive.size) if archive.size else 'size not known'}, {archive.url or archive.page or 'no link'})"
        for archive in archives
    )


def _urls(archives: Sequence[Archive], folder: Path, mirror: str) -> dict[str, str]:
    """Where each archive comes from.

    Raises:
        ConfigError: If a mirror is no folder or lacks a file, or there is no mirror and an archive has no link.
    """
    if "://" in mirror:
        if not mirror.startswith(("http://", "https://")):
            raise ConfigError(f"--mirror is a folder or an http address; got {mirror}.")
        return {archive.file: f"{mirror.rstrip('/')}/{quote(archive.file)}" for archive in archives}
    if mirror:
        if not Path(mirror).is_dir():
            raise ConfigError(f"--mirror {mirror} is not a folder. Give the folder or the http address that has the archives.")
        _refuse_missing([archive for archive in archives if not (Path(mirror) / archive.file).is_file()], Path(mirror))
        return {archive.file: (Path(mirror) / archive.file).absolute().as_uri() for archive in archives}
    by_hand = [archive for archive in archives if not archive.url]
    if by_hand:
        raise ConfigError(
            f"These have no direct link and must be got by hand: {_listed(by_hand)}. Put all archives into one folder and give it with --from-archives, "
            f"or put these into {folder}."
        )
    return {archive.file: archive.url for archive in archives}


@dataclass
class _Budget:
    """Room on disk for all downloads together; sizes that nobody states are counted as soon as a server tells them."""

    folder: Path
    sizes: dict[str, int]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        check_space(self.folder, needed=sum(max(0, size - part_size(self.folder / file)) for file, size in self.sizes.items()))

    def expect(self, file: str, size: int) -> None:
        with self.lock:
            self.sizes[file] = size
            self.check()

    def complete(self, file: str) -> None:
        with self.lock:
            del self.sizes[file]


def _download(
    archives: Sequence[Archive], urls: dict[str, str], folder: Path, parallel: int, meter: Meter, downloaded: Callable[[str], None]
) -> None:
    budget = _Budget(folder, {archive.file: archive.size for archive in archives})
    budget.check()
    stop = threading.Event()

    def task(archive: Archive) -> Callable[[], None]:
        path = folder / archive.file
        transfer = Transfer(archive, urls[archive.file], path, lambda size: budget.expect(archive.file, size), stop, meter)

        def run() -> None:
            transfer.run()
            downloaded(archive.file)
            budget.complete(archive.file)
            remember(path, archive, _record(archive, folder))

        return run

    _run([task(archive) for archive in archives], parallel, stop)


def _run(tasks: Sequence[Callable[[], None]], parallel: int, stop: threading.Event) -> None:
    """Run tasks in threads; the first error stops all and is raised.

    The threads are daemons: a pool's threads would hold up the end of the program while one of them waits for a silent server.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while not stop.is_set():
            try:
                waiting.get_nowait()()
                results.put(None)
            except queue.Empty:
                return
            except BaseException as error:  # raised by the thread that waits
                results.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(tasks)))]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            if error := results.get():
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + SECONDS_TO_STOP
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

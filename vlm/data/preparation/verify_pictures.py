"""Picture files looked at before anything trains on them: is each there, can it be read, how large is it. Knows no row and no dataset.

Many pictures are decoded in worker processes, which start in a way that is safe beside threads (forkserver, or spawn where there is none).
"""

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from vlm.errors import ConfigError, DataFormatError, reason_of

T = TypeVar("T")
Verify = Literal["decode", "header", "off"]

MISSING = "image file missing"
UNREADABLE = "image file unreadable"

ITEMS_A_BLOCK = 1000  # that wait in memory for the verdicts on their pictures, twice
FEW = 200  # pictures that are looked at in this process: workers start in the time that it takes
PICTURES_A_TASK = 32  # sent to a worker at once: enough that the sending costs little, few enough that all workers have something to do
ZEROS = 16  # bytes at the end of a file that make one suspicious of it
END_OF_JPEG = b"\xff\xd9"
UPRIGHT_ORIENTATIONS = 4  # of EXIF: those above swap height and width


class Verdict(NamedTuple):
    """What is known of a picture file.

    Attributes:
        size: Upright height and width in pixels; none if the picture was not opened.
        reason: MISSING or UNREADABLE, or empty if all is well.
        detail: What exactly is wrong, as a sentence that names the file.
        digest: SHA-256 of the file's bytes, if it was asked for.
    """

    size: tuple[int, int] | None = None
    reason: str = ""
    detail: str = ""
    digest: bytes = b""

    def renamed(self, file: Path, name: str) -> "Verdict":
        """The same, with the name that users know in the place of the file's path."""
        return self._replace(detail=self.detail.replace(str(file), name)) if self.detail else self


def look_at(path: Path, *, verify: Verify, digest: bool = False) -> Verdict:
    """Look at one picture file.

    Args:
        path: The file.
        verify: decode (read every pixel, as training will, and the checksums of a PNG), header (size and format only), or off (only whether there is a file).
        digest: Whether to hash its bytes.
    """
    try:
        if not path.is_file():
            return Verdict(reason=MISSING, detail=f"There is no image file {path}.")
        with warnings.catch_warnings(action="ignore"):  # PIL warns of odd but readable files, once for each of a million
            size = None if verify == "off" else _decoded_size(path) if verify == "decode" else _header_size(path)
        return Verdict(size, digest=_sha256(path) if digest else b"")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return Verdict(reason=MISSING, detail=f"There is no image file {path}: the name is too long for one.")
        return Verdict(reason=UNREADABLE, detail=f"The image file {path} cannot be read: {reason_of(error)}. Replace the file, or leave it out.")
    except (DataFormatError, MemoryError) as error:
        return Verdict(reason=UNREADABLE, detail=reason_of(error))


def _decoded_size(path: Path) -> tuple[int, int]:
    from vlm.data.image import load_image

    image = load_image(path)
    _refuse_damage(path)
    return image.height, image.width


def _refuse_damage(path: Path) -> None:
    """Find the damage that PIL draws as black or gray without a word: bytes of a PNG that are not its checksums', and a JPEG that ends in zeros.

    Raises:
        DataFormatError: If there is such damage.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()
    except SyntaxError as error:
        raise DataFormatError(f"The image file {path} is damaged: {error}. Replace the file, or leave it out.") from error
    if image.format in ("JPEG", "MPO") and _ends_in_zeros(path):
        raise DataFormatError(f"The image file {path} is damaged: it ends in zeros, as an interrupted copy does. Replace the file, or leave it out.")


def _ends_in_zeros(path: Path) -> bool:
    """True if zeros stand where a JPEG's end should be; zeros behind the end are harmless."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - ZEROS))
        return not any(file.read()) and not path.read_bytes().rstrip(b"\0").endswith(END_OF_JPEG)


def _header_size(path: Path) -> tuple[int, int]:
    from PIL import ExifTags, Image

    from vlm.data.image import UNREADABLE as CAUGHT

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > UPRIGHT_ORIENTATIONS
            return (image.width, image.height) if turned else (image.height, image.width)
    except CAUGHT:
        return _decoded_size(path)  # which has the words for what is wrong


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class PictureChecker:
    """Looks at picture files in the order that they are given; a context manager, which ends its worker processes."""

    def __init__(self, *, verify: Verify = "decode", workers: int | None = None, digest: bool = False):
        """Remember how to look; no process is started yet.

        Args:
            verify: decode, header or off.
            workers: Number of processes, at least 1; 1 looks in this process. None: one for each CPU that this process may use.
            digest: Whether to hash the bytes of each file.

        Raises:
            ConfigError: If there is less than one worker.
        """
        self.workers = _usable_cpus() if workers is None else workers
        if self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; at least 1 is needed, which verifies pictures without a process beside this one.")
        self._look = partial(look_at, verify=verify, digest=digest)
        self._in_processes = self.workers > 1 and (verify != "off" or digest)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "PictureChecker":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, paths: Sequence[Path]) -> Iterator[Verdict]:
        """Begin to look at files, and return an iterator over the verdicts, in order, which waits for them.

        Raises:
            ConfigError: While iterating, if a worker process dies.
        """
        if not self._in_processes or (self._pool is None and len(paths) < FEW):
            return map(self._look, paths)
        try:
            with _interrupts_wait():
                if self._pool is None:
                    self._pool = _start_pool(self.workers)
                return _received(self._pool.map(self._look, paths, chunksize=PICTURES_A_TASK), self.workers)
        except BrokenProcessPool as error:
            raise _died(self.workers) from error


def look_ahead(
    items: Iterable[T], *, files: Callable[[T], Mapping[str, Path | None]], checker: PictureChecker, verdicts: dict[str, Verdict]
) -> Iterator[T]:
    """Pass items through, each after the pictures that it uses were looked at; later pictures are looked at meanwhile.

    Args:
        items: What uses pictures.
        files: The pictures of an item: the file behind each name, or None where there is none.
        checker: Looks at files.
        verdicts: By name; those of this call are added, and no name in it is looked at again.
    """
    source, begun, asked = iter(items), deque[tuple[list[T], Iterator[tuple[str, Verdict]]]](), set(verdicts)
    while block := list(islice(source, ITEMS_A_BLOCK)):
        named = {name: file for item in block for name, file in files(item).items() if name not in asked}
        asked.update(named)
        begun.append((block, _begin(named, checker)))
        if len(begun) > 1:
            yield from _finish(*begun.popleft(), verdicts)
    while begun:
        yield from _finish(*begun.popleft(), verdicts)


def _begin(named: Mapping[str, Path | None], checker: PictureChecker) -> Iterator[tuple[str, Verdict]]:
    found = {name: file for name, file in named.items() if file is not None}
    verdicts = checker.start(list(found.values()))  # now: the workers shall begin before the first verdict is asked for
    return chain(
        ((name, Verdict(reason=MISSING, detail=f"There is no image file {name}.")) for name in named.keys() - found.keys()),
        ((name, verdict.renamed(file, name)) for (name, file), verdict in zip(found.items(), verdicts, strict=True)),
    )


def _finish(block: list[T], arriving: Iterator[tuple[str, Verdict]], verdicts: dict[str, Verdict]) -> Iterator[T]:
    verdicts.update(arriving)
    yield from block


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_pool(workers: int) -> ProcessPoolExecutor:
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["vlm.data.image"])  # imported once, not once for each worker
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_become_worker)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let an interrupt wait until the block is done, and never reach the processes that start in it.

    They inherit the mask. Without it, each shows a traceback until it has learned to leave interrupts to the parent. The handler is for this process,
    where threads without the mask take the signal: a process that is half started when the pool ends would show another traceback.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None or not hasattr(signal, "pthread_sigmask"):
        yield  # no interrupt is raised in this thread, or (on Windows) there are no masks
        return
    resource_tracker.ensure_running()  # before: its start lets interrupts through again
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def _become_worker() -> None:
    """Leave interrupts to the parent, and end with it even if it is killed: a pool's workers would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _received(verdicts: Iterator[Verdict], workers: int) -> Iterator[Verdict]:
    try:
        yield from verdicts
    except BrokenProcessPool as error:
        raise _died(workers) from error


def _died(workers: int) -> ConfigError:
    return ConfigError(
        f"One of {workers} processes that verify pictures died, most likely for lack of memory. Take fewer with --workers, or 1 to see which picture it is."
    )

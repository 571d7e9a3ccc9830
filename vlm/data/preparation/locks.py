"""One process at a time for one piece of work below a folder: locks that the system takes back when their process dies. Knows nothing of the work."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlm.errors import ConfigError


@contextmanager
def locked(files: Iterable[Path], *, work: str) -> Iterator[None]:
    """Hold a lock for each file while the block runs; the files are there only as long.

    Args:
        files: Where the locks lie; their folders are made.
        work: What is done under the locks, for the message: "prepares easy-vqa".

    Raises:
        ConfigError: At once, if another process holds one of them.
        OSError: If a folder cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for file in sorted(set(files)):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout:
                raise ConfigError(f"Another process {work} right now: it holds {file}. Wait until it is done, or end it.") from None
            held.callback(file.unlink, missing_ok=True)  # before the lock is given back: who waits for this file then sees that it is gone
        yield

"""The progress of downloads and extractions: bars with rate and time left on a terminal, else a line now and then. Knows the `Meter` of `vlm.data.archives.meter`."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0  # in a log file: often enough to see that it goes on, seldom enough to read


class RichMeter:
    """Shows files on standard error between `with RichMeter() as meter:` and its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Look whether standard error is a terminal.

        Args:
            clock: Seconds, from any moment on.
        """
        self._on_terminal = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not self._on_terminal,
            get_time=clock,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._next_line = self._progress.get_time() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> "RichMeter":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, name: str, total: int | None, *, have: int = 0) -> None:
        """Show a file, or show it anew."""
        with self._lock:
            if name in self._tasks:
                self._progress.remove_task(self._tasks[name])
            self._tasks[name] = self._progress.add_task(name, total=total, completed=have)

    def advance(self, name: str, count: int) -> None:
        """Move a bar, or write a line if the last one was long ago."""
        self._progress.advance(self._tasks[name], count)
        if not self._on_terminal:
            self._write_line()

    def done(self, name: str) -> None:
        """Take a file away."""
        with self._lock:
            self._progress.remove_task(self._tasks.pop(name))

    def _write_line(self) -> None:
        with self._lock:
            now = self._progress.get_time()
            if now < self._next_line:
                return
            self._next_line = now + SECONDS_BETWEEN_LINES
            states = [_state(task) for task in self._progress.tasks]
        log.info("%s", "; ".join(states))


def _state(task: Task) -> str:
    """`train2017.zip: 3.1 GB of 19.3 GB, 45.2 MB/s, 0:05:58 left`."""
    words = decimal(int(task.completed)) + (f" of {decimal(int(task.total))}" if task.total else "")
    if task.speed:
        words += f", {decimal(int(task.speed))}/s"
    if task.time_remaining:
        words += f", {timedelta(seconds=round(task.time_remaining))} left"
    return f"{task.description}: {words}"

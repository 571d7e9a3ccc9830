"""Seconds of named phases, the peak memory of the process, and the versions that a measurement ran with."""

import importlib.metadata
import logging
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Stopwatch:
    """Measures phases; `seconds` holds them by name, with their total."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, announcement: str) -> Iterator[None]:
        """Announce a phase and measure it; a name that comes again adds up."""
        log.info("\n== %s", announcement)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Seconds by phase and in total, to a tenth."""
        return {name: round(value, 1) for name, value in (self.seconds | {"total": sum(self.seconds.values())}).items()}


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that change numbers."""
    packages = ("vlm", "torch", "transformers", "peft", "accelerate")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}

"""Pictures of many URLs: asked again where the fault may pass, and kept in a folder, so that the next run asks nobody. Decodes nothing, knows no model.

Safe for threads and for several processes on one folder: a file is written under a temporary name and renamed.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.data.remote import FetchError, FetchRules, fetch_bytes
from vlm.errors import ConfigError

FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled each time
LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Fetched:
    """Bytes of URLs, from the folder or from the network.

    Attributes:
        rules: What may be fetched.
        folder: Where files are kept, by the hash of their URL; None to keep nothing.
        retries: Further attempts after a fault that may pass: a timeout, a broken connection, an overloaded server.
        pause: How it waits between attempts.
        fetch: How one attempt is made.
        turns: What is held during an attempt: a semaphore of as many turns as there may be connections.
    """

    rules: FetchRules = field(default_factory=FetchRules)
    folder: Path | None = None
    retries: int = 2
    pause: Callable[[float], None] = time.sleep
    fetch: Callable[[str, FetchRules], bytes] = field(default=fetch_bytes)
    turns: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def bytes_of(self, url: str) -> bytes:
        """The file behind a URL.

        Raises:
            FetchError: If it may not be asked for, or after the last attempt.
            ConfigError: If the folder cannot be written.
        """
        kept = None if self.folder is None else cache_path(self.folder, url)
        if kept is not None and kept.is_file():
            return kept.read_bytes()
        content = self._asked(url)
        if kept is not None:
            _keep(content, kept)
        return content

    def _asked(self, url: str) -> bytes:
        for attempt in range(self.retries + 1):
            try:
                with self.turns:
                    return self.fetch(url, self.rules)
            except FetchError as error:
                if not error.passing or attempt == self.retries:
                    raise
            self.pause(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")


def cache_path(folder: Path, url: str) -> Path:
    """Where the file of a URL is kept."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return folder / digest[:2] / digest  # 256 folders: one of a million files is slow to list


def _keep(content: bytes, path: Path) -> None:
    building = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building.write_bytes(content)
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"Pictures cannot be kept in {path.parent.parent} ({error.strerror}). Name another folder, or none.") from error

"""One file from a URL to disk: continued after a cut (RFC 9110, section 14), tried again after faults that pass, checked before it gets its name.

While it is on its way, `<file>.part` holds its first bytes and `<file>.part.json` what the server said of it. Knows one file only; `vlm.data.archives.download` runs several.
"""

import email.utils
import http.client
import logging
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlm import __version__
from vlm.data.archives.integrity import HEAD, HTML_SUFFIXES, check_file, check_head, read_note, write_note, wrong_size
from vlm.data.archives.meter import Meter
from vlm.data.datasets.base import Archive
from vlm.errors import ConfigError, DataFormatError, VLMError

log = logging.getLogger(__name__)

CHUNK = 256 * 1024  # bytes of one read: what a cut costs at most, and how often the progress moves
TIMEOUT = 60.0  # seconds without a byte after which a connection counts as cut
ATTEMPTS = 8  # in a row without a new byte: two minutes with the waits below
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the second attempt, doubled each time up to the longest
LONGEST_RETRY_AFTER = 600.0  # seconds that a server may ask to wait; for more, a person should come back
PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}  # and all from 500 on
LASTING = (ssl.SSLCertVerificationError, http.client.InvalidURL, FileNotFoundError, PermissionError)  # the next attempt would end the same
OTHER_WAYS = "Give a copy with --mirror, or get the file by hand and give its folder with --from-archives."


class DownloadError(VLMError):
    """A file that its server does not give."""


class Stopped(Exception):
    """The transfer was told to end, because another failed or the user interrupted; what came so far is kept."""


class _Passing(Exception):
    """A fault that may be gone at the next attempt, and the seconds that the server asks to wait."""

    def __init__(self, reason: str, *, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Note:
    """What the server said of the file whose first bytes are kept; `validator` is what If-Range takes, `total` the size."""

    url: str = ""
    validator: str = ""
    total: int | None = None


@dataclass(frozen=True)
class Transfer:
    """The way of one file to disk.

    Attributes:
        archive: What it should be.
        url: Where to get it; `file:` is copied.
        path: Where it belongs.
        expect: Told the size of the file before its bytes are written; raises if there is no room.
        stop: When set, the transfer ends with `Stopped`.
        meter: Shows the progress.
    """

    archive: Archive
    url: str
    path: Path
    expect: Callable[[int], None]
    stop: threading.Event
    meter: Meter

    def run(self) -> None:
        """Get the file and check it.

        Raises:
            DownloadError: If the server refuses, or fails again and again; what came so far is kept.
            DataFormatError: If what it gives is not the file; what came so far is deleted.
            ConfigError: If another process is at the same file.
            Stopped: If it was told to end.
        """
        with alone(self.path):
            failed, furthest = 0, part_size(self.path)
            self.meter.start(self.archive.file, self.archive.size or None, have=furthest)
            while True:
                try:
                    self._attempt()
                    return self._finish()
                except _Passing as fault:
                    size = part_size(self.path)
                    failed = 1 if size > furthest else failed + 1
                    furthest = max(furthest, size)
                    self._wait(fault, failed)
                except DataFormatError:
                    self._discard()
                    raise

    def _wait(self, fault: _Passing, failed: int) -> None:
        size = part_size(self.path)
        kept = f"The {size:,} bytes that came are kept: start again later to go on." if size else "Start again later."
        if fault.wait > LONGEST_RETRY_AFTER:
            raise DownloadError(f"{self.url} cannot be downloaded now: {fault} and asks to wait {fault.wait:,.0f} s. {kept} {OTHER_WAYS}")
        if failed >= ATTEMPTS:
            raise DownloadError(f"{self.url} cannot be downloaded: {fault}, at {failed} attempts in a row. {kept} {OTHER_WAYS}")
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failed - 1))
        wait = max(fault.wait, wait * random.uniform(0.5, 1.0))  # spread, so that many clients do not come back at once; no result depends on it
        log.warning("%s: %s; next attempt in %.0f s", self.archive.file, fault, wait)
        if self.stop.wait(wait):
            raise Stopped

    def _attempt(self) -> None:
        """Get what is still missing, in one request."""
        have, note = self._kept()
        if have and have == note.total:  # the process ended after the last byte
            return
        headers = {"User-Agent": f"vlm/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": note.validator} if note.validator else {})
        with _faults_sorted(self.url):
            try:
                response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
            except urllib.error.HTTPError as error:
                with error:
                    return self._refused(error, have, note)
        with response:
            start, total = self._begin(response, have, note)
            self._receive(response, start, self.archive.size or None if total is None else total)

    def _kept(self) -> tuple[int, _Note]:
        """How many bytes are there to go on from, and what is known of the file."""
        values = read_note(_beside(self.path, ".part.json"))
        note = _Note(**values) if values.keys() == asdict(_Note()).keys() else _Note()
        if note.url != self.url:
            self._discard()
        return part_size(self.path), note

    def _discard(self) -> None:
        """Forget what came so far; the bytes first, so that they never stand beside the note of another file."""
        _beside(self.path, ".part").unlink(missing_ok=True)
        _beside(self.path, ".part.json").unlink(missing_ok=True)

    def _refused(self, error: urllib.error.HTTPError, have: int, note: _Note) -> None:
        """Judge an answer that is no success; returns if the file is complete all the same."""
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if note.total is None and _content_range(error.headers)[1] == have:
                return
            self._discard()
            raise _Passing("the file has changed on the server")
        said = f"the server answered {error.code} ({error.reason})"
        if error.code in PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Passing(said, wait=_retry_after(error.headers))
        raise DownloadError(f"{self.url} cannot be downloaded: {said}. {OTHER_WAYS}")

    def _begin(self, response: Any, have: int, note: _Note) -> tuple[int, int | None]:
        """Check what the server is about to send; returns its first byte and the size of the whole file."""
        headers = response.headers
        if headers.get_content_type() == "text/html" and self.path.suffix.lower() not in HTML_SUFFIXES:
            page = f" Its page is {self.archive.page} ." if self.archive.page else ""
            raise DownloadError(f"{self.url} answers with a web page instead of the file {self.archive.file}.{page} {OTHER_WAYS}")
        validator = _validator(headers)
        partial = response.status == HTTPStatus.PARTIAL_CONTENT
        start, total = _content_range(headers) if partial else (0, _length(headers))
        if total is not None and self.archive.size not in (0, total):
            raise DataFormatError(wrong_size(self.url, seen=total, wanted=self.archive.size))
        if partial and (start != have or _differ(total, note.total) or _differ(validator or None, note.validator or None)):
            self._discard()
            raise _Passing("the file has changed on the server")
        if not start:
            self._discard()
            write_note(_beside(self.path, ".part.json"), asdict(_Note(self.url, validator, total)))
        return start, total

    def _receive(self, response: Any, size: int, total: int | None) -> None:
        """Append the bytes that come to the `size` that are there."""
        self.expect(total or 0)
        self.meter.start(self.archive.file, total, have=size)
        with _beside(self.path, ".part").open("ab") as file:
            while chunk := self._read(response):
                if not size and len(chunk) >= HEAD:  # the first bytes tell whether the others are worth waiting for
                    check_head(self.archive.file, chunk[:HEAD], origin=self.url)
                size += len(chunk)
                if total is not None and size > total:
                    raise DataFormatError(wrong_size(self.url, seen=size, wanted=total))
                file.write(chunk)
                self.meter.advance(self.archive.file, len(chunk))
                if self.stop.is_set():
                    raise Stopped
        if total is not None and size < total:
            raise _Passing(f"the connection ended after {size:,} of {total:,} bytes")

    def _read(self, response: Any) -> bytes:
        with _faults_sorted(self.url):
            return response.read(CHUNK)

    def _finish(self) -> None:
        part = _beside(self.path, ".part")
        check_file(part, self.archive, origin=self.url)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a name that is on disk before its bytes would be believed after a power cut
        part.replace(self.path)
        _beside(self.path, ".part.json").unlink(missing_ok=True)
        self.meter.done(self.archive.file)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process that writes a file or folder; two that append to one file would spoil it.

    Raises:
        ConfigError: If another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(path, ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"Another process is writing {path}. Wait until it is done, then start again.") from None
    try:
        yield
    finally:
        _beside(path, ".lock").unlink(missing_ok=True)
        lock.release()


def part_size(path: Path) -> int:
    """Bytes that are kept of a file that is not complete."""
    try:
        return _beside(path, ".part").stat().st_size
    except FileNotFoundError:  # not there yet, or renamed by another thread this moment
        return 0


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _faults_sorted(url: str) -> Iterator[None]:
    """What the network raises, as a fault that may pass or as an error."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        if isinstance(cause, LASTING):
            raise DownloadError(f"{url} cannot be downloaded: {said}. {OTHER_WAYS}") from error
        raise _Passing(f"the connection failed ({said})") from error


def _differ(seen: object, noted: object) -> bool:
    return None not in (seen, noted) and seen != noted


def _validator(headers: Message) -> str:
    """What If-Range takes: a strong ETag or the date of the last change (RFC 9110, section 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _length(headers: Message) -> int | None:
    stated = headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def _content_range(headers: Message) -> tuple[int, int | None]:
    """First byte and size of the whole of `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None:
        return 0, None
    return int(match[1] or 0), None if match[2] == "*" else int(match[2])


def _retry_after(headers: Message) -> float:
    """Seconds of Retry-After, which is a number or a date; 0 without one."""
    stated = headers.get("Retry-After", "").strip()
    if stated.isdigit():
        return float(stated)
    date = email.utils.parsedate_tz(stated)
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0

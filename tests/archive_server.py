"""A small HTTP server on 127.0.0.1 that serves files as publishers do, and misbehaves as they do. For tests of downloads; knows nothing of `vlm`.

from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server

def test_something(archive_server: ArchiveServer):
    url = archive_server.serve("images.zip", b"...", etag='"1"', cut_after=1000)
    ...
    assert archive_server.requests[-1].headers["range"] == "bytes=1000-"
"""

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PIECE = 64 * 1024  # bytes of one write to the connection


@dataclass
class Served:
    """One file and how it is served; may be changed between requests.

    Attributes:
        content: The file's bytes.
        etag: Sent as ETag, with its quotes; empty: none.
        last_modified: Sent as Last-Modified; empty: none.
        content_type: Sent as Content-Type.
        ranges: Whether Range is answered with 206; else the whole file comes with 200.
        if_range: Whether If-Range is heeded; else Range is answered whatever the file is now.
        length: Content-Length to claim instead of the true one.
        chunked: Send in chunks without a Content-Length.
        first: Answers (status, headers) that are given to the first requests, one each, in place of the file. A redirect is `(302, {"Location": url})`.
        cut_after: Number of body bytes after which the connection is cut.
        stall_after: Number of body bytes after which nothing more comes, until the server is closed.
        faults: To how many requests `cut_after` and `stall_after` happen.
        pause: Seconds to wait before each 64 KiB.
    """

    content: bytes
    etag: str = ""
    last_modified: str = ""
    content_type: str = "application/octet-stream"
    ranges: bool = True
    if_range: bool = True
    length: int | None = None
    chunked: bool = False
    first: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    cut_after: int | None = None
    stall_after: int | None = None
    faults: int = 1
    pause: float = 0.0


@dataclass(frozen=True)
class Seen:
    """One request that came in: its path and its headers, names in lower case."""

    path: str
    headers: Mapping[str, str]


class ArchiveServer:
    """Serves what `serve` was given.

    Attributes:
        url: Address of the server, without a slash at the end.
        files: What is served, by path without the first slash.
        requests: Every request so far, in order of arrival.
        most_at_once: The largest number of requests that were being answered at the same time.
    """

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def serve(self, path: str, content: bytes, **behavior: Any) -> str:
        """Serve bytes under a path, in the way that fields of `Served` say; returns the URL."""
        self.files[path] = Served(content, **behavior)
        return f"{self.url}/{path}"

    def close(self) -> None:
        """Stop; connections that stall are cut."""
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _enter(self, seen: Seen) -> Served | None:
        with self._lock:
            self.requests.append(seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return self.files.get(seen.path)

    def _leave(self) -> None:
        with self._lock:
            self._at_once -= 1


def _handler(server: ArchiveServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            seen = Seen(self.path.partition("?")[0][1:], {name.lower(): value for name, value in self.headers.items()})
            served = server._enter(seen)
            try:
                if served is None:
                    self._say(404, {"Content-Length": "0"})
                elif served.first:
                    status, headers = served.first.pop(0)
                    self._say(status, {"Content-Length": "0", **headers})
                else:
                    self._send_file(served)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has gone
            finally:
                server._leave()

        def _send_file(self, served: Served) -> None:
            total, start = len(served.content), self._start(served)
            headers = {"Content-Type": served.content_type, "ETag": served.etag, "Last-Modified": served.last_modified}
            if start >= total > 0:
                return self._say(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            if start:
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            if served.chunked:
                headers["Transfer-Encoding"] = "chunked"
            else:
                headers["Content-Length"] = str(total - start if served.length is None else served.length)
            self._say(206 if start else 200, headers)
            self._send_body(served, served.content[start:])

        def _start(self, served: Served) -> int:
            """The first byte that is asked for; 0 means the whole file."""
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            known = self.headers.get("If-Range")
            changed = known is not None and served.if_range and known not in (served.etag, served.last_modified)
            return int(asked[1]) if asked and served.ranges and not changed else 0

        def _send_body(self, served: Served, body: bytes) -> None:
            stop = served.cut_after if served.cut_after is not None else served.stall_after
            faulty = stop is not None and served.faults > 0
            if faulty:
                served.faults -= 1
                body = body[:stop]
            for at in range(0, len(body), PIECE):
                if served.pause and server._closed.wait(served.pause):
                    return
                piece = body[at : at + PIECE]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if served.chunked else piece)
            if faulty and served.stall_after is not None:
                self.wfile.flush()
                server._closed.wait()
            if served.chunked and not faulty:
                self.wfile.write(b"0\r\n\r\n")

        def _say(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing on standard error."""

    return Handler


@pytest.fixture(name="archive_server")
def running_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    """A running server; proxies of the environment are not asked for it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ArchiveServer()
    yield server
    server.close()

"""One picture from a URL that somebody gave: limited in time, bytes and pixels, and never from inside the network of this machine. Knows no model.

For what a person or a client of a server names (`vlm chat`, `vlm serve`, `vlm score`); published files of datasets are `vlm.data.archives`'.
A name is looked up once, its addresses are judged, and the connection goes to the address that was judged: a name that stands for another address a
moment later (DNS rebinding) changes nothing. Each redirect is judged anew. Proxies of the environment are not used, because they would look names up
themselves.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import url2pathname

from PIL import Image

from vlm import __version__
from vlm.data.image import decode_image, load_image
from vlm.errors import VLMError, reason_of

SCHEMES = {"http": 80, "https": 443}
REDIRECTS = {
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
MOST_REDIRECTS = 5
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: IPv4 addresses, for networks that have IPv6 alone
SAFE = "%/:=&?~#+!$,;'@()*[]"  # characters of a path or query that are sent as they are
OTHER_WAY = "Download the picture by hand and give its path."


TRY_AGAIN = {  # answers that may be another one a little later
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class FetchError(VLMError):
    """A picture that may not be asked for, or that its server does not give."""

    def __init__(self, message: str, *, passing: bool = False, too_large: bool = False):
        """Say what is wrong.

        Args:
            message: One line.
            passing: True if the same request may well succeed a little later.
            too_large: True if the file is longer than the rules allow.
        """
        super().__init__(message)
        self.passing, self.too_large = passing, too_large


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched.

    Attributes:
        seconds: From the first look at a URL to its last byte, redirects included; looking up the name is left to the system's own limit.
        max_bytes: Longest file.
        max_pixels: Largest picture, width times height.
        hosts: Names of the only hosts that are asked; None for any.
        allow_private: Also ask addresses that are not public: this machine, the local network, a cloud's metadata service.
    """

    seconds: float = 20.0
    max_bytes: int = 20 * 1024**2
    max_pixels: int = 50_000_000
    hosts: frozenset[str] | None = None
    allow_private: bool = False


def is_url(text: str) -> bool:
    """True for what `fetch_image` takes."""
    return text.lower().startswith(("http://", "https://"))


def open_picture(name: str, rules: FetchRules | None = None) -> Image.Image:
    """The picture that a path, a `file:` URL or a web URL names, as 8-bit RGB, upright.

    Args:
        name: What somebody typed; `~` is their home.
        rules: What may be fetched; None for the defaults.

    Raises:
        FetchError, DataFormatError: See `fetch_image` and `vlm.data.image.load_image`.
    """
    return fetch_image(name, rules) if is_url(name) else load_image(local_path(name))


def local_path(name: str) -> Path:
    """The path that a path or a `file:` URL stands for; `~` is the user's home."""
    if name.lower().startswith("file://"):
        return Path(url2pathname("/" + name[len("file://") :].partition("/")[2]))
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~nobody`
        return Path(name)


def fetch_image(url: str, rules: FetchRules | None = None) -> Image.Image:
    """The picture behind a URL as 8-bit RGB, upright.

    Args:
        url: An http or https URL.
        rules: What is allowed; None for the defaults.

    Raises:
        FetchError: If the rules forbid it, or the server does not give the file, or not in time.
        DataFormatError: If the file is no picture, broken, or has too many pixels.
    """
    rules = rules or FetchRules()
    return decode_image(fetch_bytes(url, rules), name=url, max_pixels=rules.max_pixels)


def fetch_bytes(url: str, rules: FetchRules) -> bytes:
    """The file behind a URL.

    Raises:
        FetchError: See `fetch_image`.
    """
    first, deadline = url, time.monotonic() + rules.seconds
    for _ in range(MOST_REDIRECTS + 1):
        found = _request(_target(url, rules), rules, deadline)
        if isinstance(found, bytes):
            return found
        url = _redirected(url, found)
    raise FetchError(f"{first} cannot be fetched: it redirects more than {MOST_REDIRECTS} times. {OTHER_WAY}")


def _redirected(url: str, where: str) -> str:
    """The URL that an answer leads to.

    Raises:
        FetchError: If it leads to none.
    """
    try:
        return urljoin(url, where)
    except ValueError as error:
        raise FetchError(f"{url} cannot be fetched: it redirects to {where[:200]!r}, which is no URL ({error}). {OTHER_WAY}") from error


@dataclass(frozen=True)
class _Target:
    """A URL taken apart, and the address that is asked for it."""

    url: str
    tls: bool
    host: str
    port: int
    selector: str
    address: str


def _target(url: str, rules: FetchRules) -> _Target:
    """Judge a URL and the addresses of its host.

    Raises:
        FetchError: If the rules forbid it, or the host is unknown.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").rstrip("."), parts.port
        selector = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=SAFE)
    except ValueError as error:
        raise FetchError(f"{url!r} is no URL: {error}. Give an http or https URL.") from error
    if scheme not in SCHEMES or not host or "@" in parts.netloc:
        raise FetchError(f"{url!r} is not fetched: only http and https URLs without a user name are. {OTHER_WAY}")
    if rules.hosts is not None and host not in rules.hosts:
        raise FetchError(f"{url} is not fetched: {host} is not an allowed host. Allowed: {', '.join(sorted(rules.hosts)) or 'none'}.")
    port = SCHEMES[scheme] if port is None else port
    return _Target(url, scheme == "https", host, port, selector, _address(url, host, port, rules))


def _address(url: str, host: str, port: int, rules: FetchRules) -> str:
    """The first address of a host, if all of its addresses are allowed."""
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise FetchError(
            f"{url} cannot be fetched: the host {host!r} is not found ({getattr(error, 'strerror', None) or error}). {OTHER_WAY}",
            passing=getattr(error, "errno", None) == socket.EAI_AGAIN,
        ) from error
    private = next((address for address in addresses if not is_public(address)), None)
    if private is not None and not rules.allow_private:
        raise FetchError(f"{url} is not fetched: {host} is at {private}, which is no public address. {OTHER_WAY}")
    return addresses[0]


def is_public(address: str) -> bool:
    """True for an address of the public internet; an IPv6 address that carries IPv4 addresses is judged by those."""
    ip = ipaddress.ip_address(address)
    judged = [ip] if ip.version == 4 else (_carried(ip) or [ip])
    return all(one.is_global and not (one.is_multicast or one.is_reserved or getattr(one, "is_site_local", False)) for one in judged)


def _carried(ip: ipaddress.IPv6Address) -> list[Any]:
    translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
    return [one for one in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ()), translated) if one is not None]


class _Connection(http.client.HTTPConnection):
    """A connection to the judged address, which is cut when the time is over, however the other side lets its bytes drip."""

    def __init__(self, target: _Target, seconds: float):
        super().__init__(target.host, target.port, timeout=seconds)
        self.default_port = SCHEMES["https" if target.tls else "http"]  # which the Host header leaves out
        self.target, self.seconds = target, seconds
        self.line: socket.socket | None = None
        self.late = threading.Event()
        self.timer = threading.Timer(seconds, self._cut)

    def connect(self) -> None:
        self.timer.start()
        self.line = self.sock = socket.create_connection((self.target.address, self.target.port), self.seconds)
        if self.target.tls:  # the handshake comes after the assignment, so that it can be cut as well
            self.line = self.sock = _tls().wrap_socket(self.sock, server_hostname=self.target.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def _cut(self) -> None:
        self.late.set()
        if self.line is not None:
            try:
                socket.socket.shutdown(self.line, socket.SHUT_RDWR)  # not SSLSocket's own, which drops the object that another thread reads from
            except OSError:
                return  # closed already


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _request(target: _Target, rules: FetchRules, deadline: float) -> bytes | str:
    """Ask for a file: its bytes, or where else it is.

    Raises:
        FetchError: If the server does not give it.
    """
    with _connected(target, rules, deadline) as connection:
        connection.request("GET", target.selector, headers={"User-Agent": f"vlm/{__version__}", "Accept": "image/*", "Connection": "close"})
        with connection.getresponse() as response:
            where = response.getheader("Location")
            return where if response.status in REDIRECTS and where else _content(response, target, rules)


def _content(response: http.client.HTTPResponse, target: _Target, rules: FetchRules) -> bytes:
    if response.status != HTTPStatus.OK:
        fault = f"{target.url} cannot be fetched: the server answered {response.status} ({response.reason}). {OTHER_WAY}"
        raise FetchError(fault, passing=response.status in TRY_AGAIN)
    if response.headers.get_content_type() == "text/html":
        raise FetchError(f"{target.url} is a web page, not a picture. Give the address of the picture itself.")
    if (response.length or 0) > rules.max_bytes:
        raise FetchError(_too_long(target, f"{response.length:,}", rules), too_large=True)
    content = response.read(rules.max_bytes + 1)
    if len(content) > rules.max_bytes:
        raise FetchError(_too_long(target, "more", rules), too_large=True)
    if response.length:
        raise FetchError(f"{target.url} cannot be fetched: the connection ended {response.length:,} bytes too early. Try again.", passing=True)
    return content


@contextmanager
def _connected(target: _Target, rules: FetchRules, deadline: float) -> Iterator[_Connection]:
    """A connection that is closed in any case; what the network raises meanwhile becomes one line."""
    late = FetchError(f"{target.url} cannot be fetched: it took longer than {rules.seconds:g} s. {OTHER_WAY}", passing=True)
    connection = _Connection(target, max(deadline - time.monotonic(), 0.001))
    try:
        yield connection
    except (OSError, ValueError, http.client.HTTPException) as error:
        if connection.late.is_set() or isinstance(error, TimeoutError):
            raise late from error
        if isinstance(error, VLMError):
            raise
        raise FetchError(f"{target.url} cannot be fetched: {reason_of(error)}. {OTHER_WAY}", passing=not isinstance(error, ValueError)) from error
    finally:
        connection.timer.cancel()
        connection.close()
    if connection.late.is_set():  # the end of the bytes was the cut
        raise late


def _too_long(target: _Target, seen: str, rules: FetchRules) -> str:
    return f"{target.url} is not fetched: the file has {seen} bytes, and {rules.max_bytes:,} are allowed. Give a smaller copy."

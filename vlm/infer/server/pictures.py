"""Pictures of a request: from data URLs, or from web hosts that the server's owner allows; nothing is decoded before all sizes are known to fit.

Knows no web framework and no model.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from urllib.parse import urlsplit

from PIL import Image

from vlm.data.hosts import ANY, host_names
from vlm.data.image import UNREADABLE, upright
from vlm.errors import VLMError
from vlm.infer.server.limits import Limits
from vlm.infer.server.problem import RequestError

Fetch = Callable[[str], bytes]  # a web address to what lies there
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # PIL reads many more, some through code that is seldom looked at
DATA_URL = re.compile(r"data:(?P<kind>[\w.+/-]*)(?P<parameters>(?:;[\w.=+-]+)*),", re.ASCII)


def read_addresses(addresses: Sequence[str], limits: Limits, fetch: Fetch) -> list[bytes]:
    """The files that a conversation's pictures are, in their order.

    Args:
        addresses: Data URLs or web addresses.
        limits: How many pictures and bytes are allowed.
        fetch: Gets what a web address names, or refuses it.

    Raises:
        RequestError: If there are too many, or an address holds or names nothing that may be read.
    """
    if len(addresses) > limits.max_pictures:
        raise RequestError(f"The conversation has {len(addresses)} pictures; this server takes {limits.max_pictures}.", param="messages")
    files: list[bytes] = []
    for address in addresses:
        files.append(_content(address, fetch))
        if sum(map(len, files)) > limits.max_body_bytes:  # of fetched ones, each may be as long as a request
            message = (
                f"The first {len(files)} pictures have more than {limits.max_body_bytes:,} bytes. Send smaller copies, or raise --max-body-bytes."
            )
            raise RequestError(message, status=413, param="messages", code="request_too_large")
    return files


def decode_pictures(files: Sequence[bytes], limits: Limits) -> list[Image.Image]:
    """Pictures as 8-bit RGB, upright.

    Args:
        files: What `read_addresses` gave.
        limits: How many pixels are allowed.

    Raises:
        RequestError: If a file is no picture or broken, or all of them have too many pixels; in that case none is decoded.
    """
    opened = [_open(file, number) for number, file in enumerate(files, start=1)]
    pixels = sum(image.width * image.height for image in opened)
    if pixels > limits.max_pixels:
        sizes = ", ".join(f"{image.width}x{image.height}" for image in opened)
        raise RequestError(
            f"The pictures ({sizes}) have {pixels:,} pixels; this server takes {limits.max_pixels:,}. Make them smaller.", param="messages"
        )
    return [_decode(image, number) for number, image in enumerate(opened, start=1)]


def _content(address: str, fetch: Fetch) -> bytes:
    """What an address holds or names."""
    if not address.startswith("data:"):
        return fetch(address)
    found = DATA_URL.match(address)
    if found is None or not found["parameters"].endswith(";base64"):
        raise RequestError(f"The data URL {address[:40]!r} is not as it must be: 'data:image/png;base64,...'.", param="messages")
    try:
        return base64.b64decode(address[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"The data URL {address[:40]!r} does not hold base64: {error}.", param="messages") from None


def _open(content: bytes, number: int) -> Image.Image:
    """A picture of which only the head has been read."""
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except (*UNREADABLE, Image.DecompressionBombWarning) as error:
        raise _unreadable(number, error) from None


def _decode(image: Image.Image, number: int) -> Image.Image:
    try:
        return upright(image)
    except UNREADABLE as error:
        raise _unreadable(number, error) from None


def _unreadable(number: int, error: Exception) -> RequestError:
    said = "its size is beyond all limits" if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning) else "it is broken"
    if isinstance(error, Image.UnidentifiedImageError):
        said = f"it is none of {', '.join(FORMATS)}"
    return RequestError(f"Picture {number} cannot be read: {said}. Send another file.", param="messages", code="invalid_image")


def fetch_from(hosts: Sequence[str], *, max_bytes: int = Limits.max_body_bytes, allow_private: bool = False) -> Fetch:
    """A way to fetch that asks no other hosts than these.

    Args:
        hosts: Names of hosts, as they stand in addresses; `*` for all.
        max_bytes: Longest file.
        allow_private: Also ask addresses that are not public.

    Raises:
        ConfigError: If one is no host's name.
    """
    from vlm.data.remote import FetchRules, fetch_bytes

    names = host_names(hosts, "--allow-host")
    rules = FetchRules(max_bytes=max_bytes, hosts=None if ANY in names else names, allow_private=allow_private)

    def fetch(address: str) -> bytes:
        host = _host(address)
        if host is None:
            raise RequestError(f"The address {address[:80]!r} is neither a data URL nor one of the web.", param="messages")
        if rules.hosts is not None and host not in rules.hosts:
            raise RequestError(
                f"Pictures of the host {host!r} are not fetched. Send a data URL; or start the server with --allow-host {host}.", param="messages"
            )
        try:
            return fetch_bytes(address, rules)
        except VLMError as error:
            raise RequestError(str(error), param="messages", code="picture_not_fetched") from None

    return fetch


def _host(address: str) -> str | None:
    """The host of a web address; nothing if it is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return parts.hostname if parts.scheme in ("http", "https") else None

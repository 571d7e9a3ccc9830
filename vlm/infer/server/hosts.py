"""Which names of hosts a server answers to. Knows no web framework.

A web page can let its own name resolve to 127.0.0.1 ("DNS rebinding"): its script then reaches a server of this machine as its own origin, and browsers
stop nothing. The header `Host` still has the page's name, so a server that asks for no key answers to names of this machine alone. Starlette's
TrustedHostMiddleware does the same, but tells it as plain text.
"""

import ipaddress
import re

from vlm.data.hosts import ANY, NAME, plain
from vlm.infer.server.problem import RequestError

OWN_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
HEADER = re.compile(rf"({NAME.pattern})(?::\d*)?", NAME.flags)


def answered_names(address: str, trusted: frozenset[str], *, has_key: bool) -> frozenset[str] | None:
    """The names that a server answers to; None for all.

    Args:
        address: IP address that it listens at.
        trusted: Names that its owner gives it, as from `host_names`.
        has_key: It asks clients for a key, which a strange page's script does not have.
    """
    is_open = has_key or not ipaddress.ip_address(address).is_loopback
    return None if ANY in trusted or (is_open and not trusted) else OWN_NAMES | {address} | trusted


def check_host(header: str, names: frozenset[str] | None) -> None:
    """Compare the header `Host` of a request with the server's names.

    Args:
        header: A name, with or without a port; empty if the request has none.
        names: What `answered_names` gave.

    Raises:
        RequestError: If it is none of them; 421, as in RFC 9110, section 15.5.20.
    """
    found = HEADER.fullmatch(header)
    if names is None or (found and plain(found[1]) in names):
        return
    remedy = f", or start the server with --trusted-host {found[1]}" if found else ""
    message = f"This server does not answer to the host {header[:80]!r}. Ask it at localhost or 127.0.0.1{remedy}."
    raise RequestError(message, status=421, code="unknown_host")

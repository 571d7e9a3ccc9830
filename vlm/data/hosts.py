"""Names of hosts, as somebody states them and as they are compared."""

import re
from collections.abc import Sequence

from vlm.errors import ConfigError

ANY = "*"
NAME = re.compile(r"[\w.-]+|\[[\da-f:.]+\]", re.ASCII | re.IGNORECASE)  # a name, IPv4, or IPv6 in brackets, as in addresses


def host_names(stated: Sequence[str], flag: str) -> frozenset[str]:
    """Names as they can be compared: in small letters, IPv6 without brackets.

    Args:
        stated: Names as in addresses, or `*`.
        flag: Where they were stated, for the message.

    Raises:
        ConfigError: If one can be no host's name; with a scheme or a port it would never be met.
    """
    for name in stated:
        if name != ANY and not NAME.fullmatch(name):
            raise ConfigError(
                f"{flag} is {name!r}, which is no host's name. Leave out scheme, port and path: {flag} chat.example.org; '*' is for all."
            )
    return frozenset(map(plain, stated))


def plain(name: str) -> str:
    """A name in small letters, IPv6 without brackets."""
    return name.lower().strip("[]")

"""How downloads and extractions tell how far they are. Knows no terminal; `vlm.commands.meter` draws it."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Meter(Protocol):
    """Shows how far each of several files is; called from several threads."""

    def start(self, name: str, total: int | None, *, have: int = 0) -> None:
        """Begin a file, or begin it anew, of `total` bytes (None: not known) of which `have` are there already."""

    def advance(self, name: str, count: int) -> None:
        """Note that `count` more bytes are there."""

    def done(self, name: str) -> None:
        """Note that a file is complete."""


class NoMeter:
    """Shows nothing."""

    def start(self, name: str, total: int | None, *, have: int = 0) -> None:
        """Do nothing."""

    def advance(self, name: str, count: int) -> None:
        """Do nothing."""

    def done(self, name: str) -> None:
        """Do nothing."""

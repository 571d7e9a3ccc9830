"""Bytes of requests that are held at a time, counted by all threads. Knows no request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """A number of bytes that many requests share."""

    def __init__(self, size: int):
        """Begin with nothing held.

        Args:
            size: Most bytes.
        """
        self.size, self.held = size, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Hold so many bytes more; False, and nothing held, if they are too many."""
        with self._lock:
            fits = self.held + count <= self.size
            self.held += count if fits else 0
            return fits

    def give(self, count: int) -> None:
        """Hold so many bytes less."""
        with self._lock:
            self.held -= count


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget):
        """Begin with nothing held.

        Args:
            budget: Where it takes from.
        """
        self.budget, self.held = budget, 0

    def take(self, count: int) -> bool:
        """Hold so many bytes more, if they are there."""
        fits = self.budget.take(count)
        self.held += count if fits else 0
        return fits

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """At the end, nothing is held any more."""
        try:
            yield
        finally:
            self.budget.give(self.held)
            self.held = 0

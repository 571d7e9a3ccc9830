"""Vectors of things that were met lately, by key, in one block of memory: what is met again is not encoded again. Knows no model."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Remembered:
    """A table of vectors whose rows go to those that were used last.

    Rows are given out before their vectors exist, so that a plan can be made ahead: a row that is taken from a key still holds that key's vector until
    the new one is written. Memory is touched as rows are first used.
    """

    def __init__(self, capacity: int, width: int):
        """Begin empty.

        Args:
            capacity: Rows.
            width: Of a vector.
        """
        self.vectors: Float[Tensor, "C J"] = torch.empty(capacity, width)
        self.capacity = capacity
        self._rows: OrderedDict[bytes, int] = OrderedDict()

    def assign(self, keys: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
        """A row for each key: all of them, and those that are new and want a vector.

        Raises:
            ValueError: If there are more keys than rows.
        """
        found: dict[str, int] = {}
        new: dict[str, int] = {}
        for key in dict.fromkeys(keys):
            digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()  # however long the key is
            if digest in self._rows:
                self._rows.move_to_end(digest)
                found[key] = self._rows[digest]
                continue
            if len(found) == self.capacity:
                raise ValueError(f"More than {self.capacity} keys at once.")
            row = len(self._rows) if len(self._rows) < self.capacity else self._rows.popitem(last=False)[1]
            self._rows[digest] = found[key] = new[key] = row
        return found, new

    def write(self, rows: Int[Tensor, " B"], vectors: Float[Tensor, "B J"]) -> None:
        """Put vectors into their rows."""
        self.vectors[rows] = vectors

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
        """The vectors of rows."""
        return self.vectors[rows]

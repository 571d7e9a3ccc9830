"""The best rows of each group, exactly, without holding the rows: a radix selection in passes over the data. Knows numbers alone.

A pass counts the next digit of the scores that may still be at the edge; after 32 bits the edge is known. Memory is the table of counts: 512 KB for one group,
2 KB a group for several.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

BITS = 32
ONE_GROUP_DIGIT = 16  # bits of a digit: two passes
DIGIT = 8  # four passes

Parts = Callable[
    [], Iterable[tuple[Int[np.ndarray, " n"], UInt32[np.ndarray, " n"]]]
]  # groups and keys of the rows, in pieces; the same at each call


def keys_of(scores: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Integers in the order of the scores as float32; -0 and 0 are equal. NaN is not allowed."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


@dataclass
class Edge:
    """Where the best rows of each group end: which of the rows that come by are among them.

    Attributes:
        keys: The least key that is kept, for each group.
        ties: How many rows of exactly that key are kept, the first ones.
    """

    keys: Int[np.ndarray, " G"]
    ties: Int[np.ndarray, " G"]
    _used: Int[np.ndarray, " G"] = field(init=False)

    def __post_init__(self) -> None:
        self._used = np.zeros_like(self.ties)

    def keeps(self, groups: Int[np.ndarray, " n"], keys: UInt32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each row is among the best; rows must come by once, in their order."""
        edge = self.keys[groups]
        kept = keys > edge
        tied = np.flatnonzero(keys == edge)
        owners = groups[tied]
        kept[tied] = self._used[owners] + occurrences(owners) < self.ties[owners]
        self._used += np.bincount(owners, minlength=len(self._used))
        return kept


def occurrences(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each value, how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], np.arange(len(values))
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(values) else np.zeros(0, dtype=bool)
    seen = np.empty(len(values), dtype=np.int64)
    seen[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return seen


def edge_of(parts: Parts, quotas: Int[np.ndarray, " G"]) -> Edge:
    """The edge of the best rows of each group; of equal scores the first rows are the better ones.

    Args:
        parts: Gives the rows, once for each pass: two for one group, four for several.
        quotas: Rows that are kept of each group: at least 1, and no more than the group has.
    """
    bits = ONE_GROUP_DIGIT if len(quotas) == 1 else DIGIT
    num_digits, groups_in_order = 1 << bits, np.arange(len(quotas))
    left, prefix = quotas.astype(np.int64), np.zeros(len(quotas), dtype=np.int64)
    for shift in range(BITS - bits, -1, -bits):
        counts = np.zeros(len(quotas) * num_digits, dtype=np.int64)
        for groups, keys in parts():
            wide = keys.astype(np.int64)
            at_edge = wide >> (shift + bits) == prefix[groups]
            slots = groups[at_edge] * num_digits + (wide[at_edge] >> shift & (num_digits - 1))
            found, times = np.unique(slots, return_counts=True)
            counts[found] += times
        from_best = counts.reshape(len(quotas), num_digits)[:, ::-1].cumsum(axis=1)
        place = (from_best < left[:, None]).sum(axis=1)
        left = left - np.where(place > 0, from_best[groups_in_order, place - 1], 0)
        prefix = prefix << bits | (num_digits - 1 - place)
    return Edge(prefix, left)

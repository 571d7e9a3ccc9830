"""Permutations of any size, any stretch of which is computed alone: so that training resumes at position 50,000,000 without passing the first 49,999,999.

A Feistel network (Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"): a keyed bijection of
the next power of 4, applied again where it leads out of the range.
"""

import numpy as np

ROUNDS = 8
MIN_HALF_BITS = 3  # a network of fewer bits has too few different permutations
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64, as are the constants below (Steele, Lea and Flood 2014)


class Shuffle:
    """A random permutation of 0 .. size - 1, fixed by its key."""

    def __init__(self, size: int, *key: int):
        """Derive the round keys.

        Args:
            size: Number of positions, at least 1.
            key: Seed and whatever else tells this permutation from others, not negative.
        """
        self.size = size
        self._half = np.uint64(max(MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray, rounds: np.ndarray | int = 0) -> np.ndarray:
        """What stands at each position, as int64.

        Args:
            positions: Positions, 0 .. size - 1.
            rounds: Number of the permutation that each position is looked up in, not negative: each number is a permutation of its own.
        """
        tweaks = mix(np.broadcast_to(np.asarray(rounds), positions.shape).astype(np.uint64) * MULTIPLIER)
        values = self._permute(positions.astype(np.uint64), tweaks)
        while (outside := values >= self.size).any():
            values[outside] = self._permute(values[outside], tweaks[outside])
        return values.astype(np.int64)

    def _permute(self, values: np.ndarray, tweaks: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right * MULTIPLIER + (key ^ tweaks)) & self._mask)
        return left << self._half | right


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input changes every bit of the output with probability one half."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)

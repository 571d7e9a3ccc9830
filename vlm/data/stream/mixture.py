"""Several sources in one stream, in stated shares: what `--stage.dataset "a:0.7,b:0.3"` means. Knows names and numbers, no data.

A source is never drawn at random one row at a time: an epoch of the mixture holds an exact number of each source's rows, shuffled. Over the epochs each source
is gone through pass after pass: after any number of epochs no row has come twice more often than another. Everything is a function of the seed and the
position, so nothing but the position needs to be remembered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.data.stream.shuffle import Shuffle
from vlm.errors import ConfigError

AMOUNT = re.compile(r"(?P<name>.+?)(?::(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<passes>x?))?")
NEARLY_AMOUNT = re.compile(r"^[^/\\]*[\d%][^/\\]*$")  # what a user may have meant as a number


@dataclass(frozen=True)
class Entry:
    """One source of a mixture.

    Attributes:
        name: The dataset, as `vlm.data.reader` opens it: name, `name@split` or path.
        share: Part of the mixture, relative to the other entries; None where passes are stated.
        passes: Times that an epoch of the mixture goes through the source; None where shares are stated.
    """

    name: str
    share: float | None = None
    passes: float | None = None


def parse_mixture(text: str) -> tuple[Entry, ...]:
    """Entries of `a,b` (each once an epoch), `a:0.7,b:0.3` (shares) or `a:2x,b` (passes; without a number once).

    Raises:
        ConfigError: If nothing is named, a name comes twice, an amount is 0, or some entries state shares and others do not.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    entries = [_entry(word) for word in words]
    if not entries:
        raise ConfigError("No dataset is named. Set --stage.dataset to a prepared dataset or a file.")
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--stage.dataset names {twice[0]!r} twice. Name it once, with the amount you want: '{twice[0]}:2x' for two passes.")
    if len({entry.share is None for entry in entries}) > 1:
        raise ConfigError(
            f"--stage.dataset {text!r} states shares for some datasets and not for others. Give each one a share ('a:0.7,b:0.3') or passes ('a:2x,b:1x')."
        )
    return tuple(entries)


def mixture(table: Mapping[str, float]) -> str:
    """A table of shares as the text that `--stage.dataset` takes, for presets: `dataset=mixture({"a": 0.7, "b": 0.3})`."""
    return ",".join(f"{name}:{share:.12g}" for name, share in table.items())


def _entry(word: str) -> Entry:
    found = AMOUNT.fullmatch(word)
    assert found is not None
    if found["number"] is None:
        name, colon, amount = word.rpartition(":")
        if colon and (not amount or NEARLY_AMOUNT.search(amount)):
            raise ConfigError(
                f"--stage.dataset: {amount!r} is no amount of {name!r}. Write a share as '{name}:0.7', or passes as '{name}:2x'; commas separate datasets."
            )
        return Entry(word, passes=1.0)
    amount = float(found["number"])
    if not amount > 0:
        raise ConfigError(f"--stage.dataset: the amount of {found['name']!r} is {found['number']}; it must be positive. Remove the dataset instead.")
    return Entry(found["name"], passes=amount) if found["passes"] else Entry(found["name"], share=amount)


def draws_an_epoch(entries: Sequence[Entry], sizes: Sequence[int], *, weights: Sequence[float] | None = None) -> tuple[int, ...]:
    """How many rows of each source an epoch of the mixture holds.

    Shares are parts of as many rows as all sources have together, rounded so that the sum is exact (largest remainder); passes are multiples of the
    source's own rows.

    Args:
        entries: The sources.
        sizes: Rows of each.
        weights: What a row of each source counts for shares, such as its mean number of tokens; None: every row counts the same.

    Raises:
        ConfigError: If a share is so small that it rounds to no row at all.
    """
    if entries[0].share is None:
        counts = [max(1, round(size * (entry.passes or 1.0))) for entry, size in zip(entries, sizes, strict=True)]
    else:
        parts = np.array([entry.share for entry in entries], dtype=np.float64) / np.array(weights if weights is not None else 1.0)
        exact = parts / parts.sum() * sum(sizes)
        floors = np.floor(exact).astype(int)
        floors[np.argsort(floors - exact, kind="stable")[: sum(sizes) - int(floors.sum())]] += 1
        counts = floors.tolist()
    if 0 in counts:
        name = entries[counts.index(0)].name
        raise ConfigError(f"The share of {name!r} in --stage.dataset is less than one of {sum(sizes):,} rows. Raise it, or remove the dataset.")
    return tuple(counts)


@dataclass(frozen=True)
class Draws:
    """Which row stands at which position of an epoch. Rows are numbered through all sources, one source after the other.

    Attributes:
        sizes: Rows of each source.
        counts: Rows of each source in an epoch of the mixture.
        seed: Seed of all permutations.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        """Positions of an epoch."""
        return sum(self.counts)

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Rows at positions of an epoch, shape [positions]; costs nothing for what lies before them."""
        places = Shuffle(len(self), self.seed, 0)(positions, epoch)
        ends = np.cumsum(self.counts)
        source = np.searchsorted(ends, places, side="right")
        rows = np.empty_like(places)
        first = 0
        for i, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            mine = source == i
            rows[mine] = first + self._rows_of(i, size, places[mine] - (ends[i] - count) + epoch * count)
            first += size
        return rows

    def _rows_of(self, source: int, size: int, turns: np.ndarray) -> np.ndarray:
        """Row of a source at its n-th turn, counted over all epochs."""
        if self.counts[source] == size:
            return turns % size  # each once an epoch: the shuffle of the mixture is shuffle enough
        passes, places = np.divmod(turns, size)
        return Shuffle(size, self.seed, source + 1)(places, passes)

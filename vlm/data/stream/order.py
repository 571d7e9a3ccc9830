"""The order of training: units (conversations, or trees of them) to rows, window by window, as a pure function of seed, epoch and position.

A window is a closed stretch of an epoch's shuffled units: what is grouped by length or packed together is decided inside it. The stream of rows is the
same on every rank, for any number of ranks and workers; `Position` says where it goes on. Knows lengths, no data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlm.data.stream.mixture import Draws
from vlm.data.stream.packing import pack

WINDOW = 4_096  # units planned together: best-fit decreasing loses less than 0.1 % to planning them all, at any size of data (benchmarks/packing.md)
PLANNED_EXACTLY = 2_000_000  # units an epoch up to which rows are counted by planning them all, 1 microsecond each
SAMPLED_WINDOWS = 64  # beyond that, rows are counted in so many windows and extrapolated

Tree = tuple[int, ...]  # samples that share their pictures; most trees are one sample
Row = tuple[Tree, ...]  # trees that stand in one row; without packing, one
Arrange = Callable[
    [np.ndarray, np.random.Generator, int], list[list[int]]
]  # units of a window, randomness, first position in the stream -> rows of units


class Position(NamedTuple):
    """Where the stream of rows goes on."""

    epoch: int = 0
    window: int = 0
    row: int = 0


START = Position()


@dataclass(frozen=True)
class Units:
    """What is drawn: samples, or trees of samples that share their pictures.

    Attributes:
        count: Number of units.
        trees: The samples of all units, one unit after the other, and where each unit starts and the last ends, shapes [samples] and [count + 1];
            None where each sample is a unit of its own.
        lengths: Tokens of each unit, shape [count]; None where nobody needs them.
        alone: Tokens that all samples would have in rows of their own; 0 where nobody counted.
        with_images: Which units have pictures, shape [count]; goes with the lengths.
    """

    count: int
    trees: tuple[np.ndarray, np.ndarray] | None = None
    lengths: np.ndarray | None = None
    with_images: np.ndarray | None = None
    alone: int = 0

    @property
    def num_samples(self) -> int:
        """Samples in all units."""
        return self.count if self.trees is None else len(self.trees[0])

    def tree(self, unit: int) -> Tree:
        """The samples of a unit."""
        if self.trees is None:
            return (unit,)
        samples, starts = self.trees
        return tuple(samples[starts[unit] : starts[unit + 1]].tolist())


@dataclass(frozen=True)
class RowOrder:
    """The endless stream of rows.

    Attributes:
        units: What is drawn.
        draws: Which unit stands at which position of an epoch.
        arrange: How the units of a window become rows.
        capacity: Tokens a row, where several units are packed into one; None where each is a row.
        seed: Seed of the arrangement.
        window: Units a window.
    """

    units: Units
    draws: Draws
    arrange: Arrange
    capacity: int | None
    seed: int
    window: int = WINDOW

    @property
    def num_windows(self) -> int:
        """Windows of an epoch; the last may be shorter."""
        return -(-len(self.draws) // self.window)

    def plan(self, epoch: int, window: int) -> list[list[int]]:
        """The units in each row of a window."""
        first = window * self.window
        units = self.draws.at(epoch, np.arange(first, min(first + self.window, len(self.draws))))
        return self.arrange(units, np.random.default_rng([self.seed, epoch, window]), epoch * len(self.draws) + first)

    def rows(self, epoch: int, window: int) -> list[Row]:
        """The rows of one window."""
        return [tuple(self.units.tree(unit) for unit in row) for row in self.plan(epoch, window)]

    def stream(self, start: Position = START) -> Iterator[tuple[Row, Position]]:
        """Rows from a position on, each with the position after it; never ends."""
        epoch, window, first = start
        while True:
            rows = self.rows(epoch, window)
            following = (epoch, window + 1) if window + 1 < self.num_windows else (epoch + 1, 0)
            for i in range(first, len(rows)):
                yield rows[i], Position(epoch, window, i + 1) if i + 1 < len(rows) else Position(*following, 0)
            (epoch, window), first = following, 0

    def count_rows(self, epochs: float | int) -> tuple[int, bool]:
        """Rows of so many epochs, and whether that is exact: huge epochs are extrapolated from some of their windows."""
        whole, part = divmod(epochs, 1.0)
        counts = [self._count(epoch) for epoch in range(int(whole) + (part > 0))]
        if part > 0:
            counts[-1] = (-(-round(counts[-1][0] * part * 1e6) // 1_000_000), counts[-1][1])
        return sum(rows for rows, _ in counts), all(exact for _, exact in counts)

    def _count(self, epoch: int) -> tuple[int, bool]:
        if self.capacity is None:
            return len(self.draws), True
        exact = len(self.draws) <= PLANNED_EXACTLY
        windows = range(self.num_windows) if exact else np.linspace(0, self.num_windows - 2, SAMPLED_WINDOWS).astype(int).tolist()
        rows = sum(len(self.plan(epoch, window)) for window in windows)
        return (rows, True) if exact else (round(rows * len(self.draws) / (SAMPLED_WINDOWS * self.window)), False)


def shuffled(num_samples: int, seed: int) -> RowOrder:
    """Single samples of one source in random order, one a row."""
    return RowOrder(Units(num_samples), Draws((num_samples,), (num_samples,), seed), one_a_row, capacity=None, seed=seed)


def one_a_row(units: np.ndarray, rng: np.random.Generator, position: int) -> list[list[int]]:
    """Each unit a row, in the order drawn."""
    return [[unit] for unit in units.tolist()]


def packed(units: np.ndarray, rng: np.random.Generator, position: int, *, lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Units packed into rows of a capacity; the rows are shuffled, because packing sorts them."""
    rows = pack(lengths[units], capacity)
    return [units[rows[i]].tolist() for i in rng.permutation(len(rows)).tolist()]


def grouped(
    units: np.ndarray, rng: np.random.Generator, position: int, *, lengths: np.ndarray, with_images: np.ndarray, batch: int
) -> list[list[int]]:
    """Each unit a row, ordered so that a step's batch has one modality where possible and runs from long to short.

    In the spirit of LLaVA's `get_modality_length_grouped_indices` (haotian-liu/LLaVA, llava/train/llava_trainer.py): batches of pictures and of text
    alone, in random order, sorted by length inside. Unlike there, what is left over of both modalities makes mixed batches, no unit is dropped or
    repeated, and any number of either modality will do. The first batch holds the longest unit of the first window, so that a lack of memory shows soon.

    With n units, `n = head + full batches + tail`. Left-overs of both modalities fill the head, the batches that are missing, and the tail; if head and tail
    together are larger than the left-overs, one pure batch is dissolved among them.

    Args:
        units: Units of a window.
        rng: Decides the order of the batches.
        position: Position of the first unit in the stream; the first batch is shorter where a step has begun before the window.
        lengths: Tokens of every unit.
        with_images: Which units have pictures.
        batch: Rows a step.
    """
    head = min(len(units), -position % batch)
    num_full = (len(units) - head) // batch
    pure: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for modality in (units[with_images[units]], units[~with_images[units]]):
        whole = len(modality) // batch * batch
        pure += np.split(modality[:whole], whole // batch) if whole else []
        rest.append(modality[whole:])
    spare = [pure.pop(0)] if len(pure) > num_full else []  # head and tail take as many as a batch together
    mixed = np.concatenate([*spare, *rest])
    opening, mixed = mixed[:head], mixed[head:]
    missing = (num_full - len(pure)) * batch
    full = [*pure, *(np.split(mixed[:missing], missing // batch) if missing else [])]
    full = [full[i] for i in rng.permutation(len(full)).tolist()]
    if position == 0 and full:
        longest = max(range(len(full)), key=lambda i: lengths[full[i]].max())
        full[0], full[longest] = full[longest], full[0]
    ordered = [_long_to_short(chunk, lengths) for chunk in (opening, *full, mixed[missing:])]
    return [[unit] for chunk in ordered for unit in chunk]


def _long_to_short(units: np.ndarray, lengths: np.ndarray) -> Sequence[int]:
    return units[np.argsort(-lengths[units], kind="stable")].tolist()

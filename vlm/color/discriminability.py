"""Semantic discriminability: how well people can tell which color of a palette means which concept, and the palette that makes it easiest.

Semantic distance of two concepts and two colors: Schloss, Leggon and Lessard 2021. Assignment, contrast and capacity of n concepts: Mukherjee, Yin, Sherman,
Lessard and Schloss, TVCG 2022, arXiv:2108.03685. Associations are from 0 to 1, as people rate them.
"""

import heapq
import itertools

import numpy as np
from jaxtyping import Float, Int

from vlm.color.metrics import negative_entropy, scipy_module
from vlm.errors import ConfigError

SPREAD = 1.4  # of a rating x, as people's vary: 1.4 x (1 - x)
FLOOR = 0.1  # least spread in the lab's later code
DRAWS = 1000
MOST_TRIES = 50_000  # libraries, some 10 seconds
MERITS = ("balanced", "isolated", "baseline")

Table = Float[np.ndarray, "C K"]


def spread(values: Float[np.ndarray, "*shape"], *, floor: float = 0.0) -> Float[np.ndarray, "*shape"]:
    """Standard deviation of an association.

    Args:
        values: Associations, 0 to 1.
        floor: The least spread; 0 in the paper, 0.1 in the lab's later code.
    """
    return np.maximum(SPREAD * values * (1 - values), floor)


def semantic_distances(one: Float[np.ndarray, " K"], other: Float[np.ndarray, " K"], *, floor: float = 0.0) -> Float[np.ndarray, "K K"]:
    """Semantic distance of two concepts for each two colors, 0 to 1: how far the better assignment is from a draw.

    Args:
        one: Associations of the first concept.
        other: Associations of the second.
        floor: See `spread`.
    """
    gain = one - other
    difference = gain[:, None] - gain[None]  # (x1 + x4) - (x2 + x3)
    variance = spread(one, floor=floor) ** 2 + spread(other, floor=floor) ** 2
    deviation = np.sqrt(variance[:, None] + variance[None])
    certain = np.where(difference > 0, np.inf, np.where(difference < 0, -np.inf, 0.0))  # ratings of 0 and 1 alone have no spread
    ratio = np.divide(difference, deviation, out=certain, where=deviation > 0)
    return np.abs(2 * scipy_module("special").ndtr(ratio) - 1)


def merits(associations: Table, kind: str = "balanced") -> Table:
    """How good it is to give a concept (row) a color (column).

    Args:
        associations: 0 to 1.
        kind: balanced is the association less that of the concept that has most of it beside; isolated the association alone; baseline prefers
            colors that are about as strongly associated with another concept, which makes palettes that are hard to read, for comparison.

    Raises:
        ConfigError: If there is no such kind.
    """
    if kind not in MERITS:
        raise ConfigError(f"--merit is balanced, isolated or baseline; got {kind!r}.")
    if kind == "isolated" or len(associations) == 1:
        return associations
    highest = np.sort(associations, axis=0)
    best, second = highest[-1], highest[-2]
    others = np.where(associations == best, np.where(second == best, best, second), best)
    return associations - others if kind == "balanced" else -np.abs(associations - others)


def assign(associations: Table, kind: str = "balanced") -> Int[np.ndarray, " C"]:
    """The column of each concept's color in the assignment with the highest merit.

    Raises:
        ConfigError: If there are fewer colors than concepts.
    """
    count, colors = associations.shape
    if colors < count:
        raise ConfigError(f"{count} concepts need at least as many colors; there are {colors}.")
    return scipy_module("optimize").linear_sum_assignment(merits(associations, kind), maximize=True)[1]


def semantic_contrast(
    palette: Float[np.ndarray, "C C"], *, kind: str = "balanced", draws: int = DRAWS, seed: int = 0, floor: float = 0.0
) -> Float[np.ndarray, " C"]:
    """Of each concept, the share of draws in which the best assignment gives it its own color; 1 / C is chance.

    Args:
        palette: Associations of the concepts with the palette's colors; concept i is meant to have color i.
        kind: Merit of the assignment.
        draws: Simulated observers, whose associations vary around the mean.
        seed: Their seed.
        floor: See `spread`.
    """
    drawn = np.random.default_rng(seed).normal(palette, spread(palette, floor=floor), size=(draws, *palette.shape))
    right = np.stack([assign(one, kind) for one in drawn]) == np.arange(len(palette))
    return right.mean(0)


def pairwise_distances(palette: Float[np.ndarray, "C C"], *, floor: float = 0.0) -> Float[np.ndarray, "C C"]:
    """Semantic distance of each two concepts with their own two colors; 0 where the wrong assignment is the better one, and on the diagonal."""
    size = len(palette)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1, size):
            of_two = palette[np.ix_([i, j], [i, j])]
            fits = of_two[0, 0] + of_two[1, 1] > of_two[0, 1] + of_two[1, 0]
            found[i, j] = found[j, i] = semantic_distances(of_two[0], of_two[1], floor=floor)[0, 1] if fits else 0.0
    return found


def capacity(associations: Table) -> float:
    """How far apart concepts can be told at best by these colors: the generalized total variation of their distributions, 0 to C - 1.

    Equal to the total variation for two concepts.
    """
    shares = associations / associations.sum(1, keepdims=True)
    return max(0.0, float(shares.max(0).sum() - 1))


def specificity(associations: Table) -> Float[np.ndarray, " C"]:
    """Negative entropy of each concept's distribution over the colors, in nats: -ln K if it goes with all alike, 0 if with one alone."""
    shares = associations / associations.sum(1, keepdims=True)
    return np.array([negative_entropy(row) for row in shares])


def assign_apart(associations: Table, distances: Float[np.ndarray, "K K"], least: float, kind: str = "balanced") -> Int[np.ndarray, " C"]:
    """The assignment with the highest merit among those without colors that look alike.

    Branch and bound: where the best assignment has two colors that are too near, one of them is either not in the palette, or none that is near to it is. Of all
    libraries left to try, the one with the highest merit is next, so the first without such colors is the best.

    Args:
        associations: Concepts by colors of the library, 0 to 1.
        distances: Between the colors.
        least: Least color difference of two colors of the palette.
        kind: Merit.

    Raises:
        ConfigError: If there are no such colors, or they were not found in `MOST_TRIES`.
    """
    worth, count = merits(associations, kind), len(associations)
    assign(associations, kind)  # refuses too few colors
    near = (distances < least) & ~np.eye(len(distances), dtype=bool)
    queue: list[tuple[float, int, Int[np.ndarray, " C"], Int[np.ndarray, " L"]]] = []
    tried = itertools.count()

    def add(left: Int[np.ndarray, " L"]) -> None:
        if len(left) >= count:
            chosen = left[scipy_module("optimize").linear_sum_assignment(worth[:, left], maximize=True)[1]]
            heapq.heappush(queue, (-worth[np.arange(count), chosen].sum(), next(tried), chosen, left))

    add(np.arange(len(distances)))
    for _ in range(MOST_TRIES):
        if not queue:
            raise ConfigError(f"No {count} of {len(distances)} colors differ by {least:g} each. Lower --min-delta-e or give more colors.")
        _, _, chosen, left = heapq.heappop(queue)
        conflicts = near[np.ix_(chosen, chosen)].sum(1)
        if not conflicts.any():
            return chosen
        color = chosen[conflicts.argmax()]
        add(left[left != color])
        add(left[~near[color, left]])
    raise ConfigError(f"No {count} of {len(distances)} colors that differ by {least:g} each were found in {MOST_TRIES:,} tries. Lower --min-delta-e.")

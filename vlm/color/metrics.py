"""How close predicted associations are to people's, by concept: the study's metrics as they are, and corrected ones.

The study's come from Hu et al., TVCG 2023, but are applied to rows that are no distributions, and its earth mover's distance forgets which color a value
belongs to. The corrected ones compare distributions over the colors, and move mass over CIELAB distances.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm.color.associations import Associations
from vlm.color.files import csv_text
from vlm.errors import ConfigError, DataFormatError, MissingPackageError

RAW = ("PCC", "SRC", "TV", "EMD", "ED")
NORMALIZED = ("PCC", "SRC", "TV", "JSD", "EMD", "ED")
WORDS = {
    "PCC": "Pearson correlation",
    "SRC": "Spearman rank correlation",
    "TV": "total variation",
    "JSD": "Jensen-Shannon divergence, bits",
    "EMD": "earth mover's distance, CIELAB \N{GREEK CAPITAL LETTER DELTA}E",
    "ED": "entropy difference, nats",
}
NAN = float("nan")
ROUNDING = 1e-12  # of the largest value

Row = Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Scores:
    """Metrics of one prediction.

    Attributes:
        names: The metrics.
        by_concept: Of each concept its values, in the order of `names`; NaN where a metric is not defined, as the correlation of a constant row.
    """

    names: tuple[str, ...]
    by_concept: Mapping[str, tuple[float, ...]]

    def column(self, name: str) -> dict[str, float]:
        """One metric by concept."""
        at = self.names.index(name)
        return {concept: values[at] for concept, values in self.by_concept.items()}

    def mean(self, name: str) -> float:
        """Mean of a metric over the concepts; NaN if it is not defined for one of them."""
        return float(np.mean(list(self.column(name).values())))

    def undefined(self) -> list[str]:
        """Concepts for which a metric is not defined."""
        return [concept for concept, values in self.by_concept.items() if any(map(math.isnan, values))]

    def as_csv(self) -> str:
        """The table as pandas writes the study's: an index without a name, then word and metrics."""
        rows = [[i, word, *map(float, values)] for i, (word, values) in enumerate(self.by_concept.items())]
        return csv_text([["", "word", *self.names], *rows])


def scipy_module(name: str) -> Any:
    """A module of scipy.

    Raises:
        MissingPackageError: If scipy is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError:
        raise MissingPackageError("scipy", needed_for="`vlm color`", extra="color") from None


def aligned(ratings: Associations, predictions: Associations) -> tuple[Associations, Associations]:
    """Both tables with the concepts of the predictions, those without ratings left out, as the ratings spell them, and the colors of the ratings.

    Raises:
        DataFormatError: If they share no concept, a concept is there in two spellings, or the predictions lack a color that was rated.
    """
    shared = [concept for concept in predictions.concepts if ratings.row_of(concept) is not None]
    if not shared:
        raise DataFormatError(
            f"None of the {len(predictions.concepts)} concepts of {predictions.source} is rated in {ratings.source}: "
            f"{', '.join(predictions.concepts[:5])}. Give other ratings with --ratings."
        )
    if missing := [color for color in ratings.colors if color not in predictions.colors]:
        raise DataFormatError(
            f"{predictions.source} has {len(predictions.colors)} colors and no {missing[0]!r}, which is rated in {ratings.source}. "
            "Give ratings of the same colors with --ratings."
        )
    own = ratings.of(shared)
    if twice := [one for i, one in enumerate(own.concepts) if one in own.concepts[:i]]:
        raise DataFormatError(f"{predictions.source} has the concept {twice[0]!r} twice, in other spellings. Take one of them out.")
    return own, replace(predictions.of(shared).at(ratings.colors), concepts=own.concepts)


def unrated(ratings: Associations, predictions: Associations) -> list[str]:
    """The concepts of predictions that nobody rated."""
    return [concept for concept in predictions.concepts if ratings.row_of(concept) is None]


def raw_scores(ratings: Associations, predictions: Associations) -> Scores:
    """The study's metrics, on ratings and cosines as they are. EMD compares the values as samples, whatever colors they belong to."""
    pairs = _rows(ratings, predictions)
    return Scores(RAW, {concept: _raw(g, p) for concept, g, p in pairs})


def _raw(g: Row, p: Row) -> tuple[float, ...]:
    emd = float(scipy_module("stats").wasserstein_distance(g, p))
    return pearson(g, p), spearman(g, p), float(0.5 * np.abs(g - p).sum()), emd, abs(negative_entropy(g) - negative_entropy(p))


def normalized_scores(
    ratings: Associations, predictions: Associations, distances: Float[np.ndarray, "K K"], *, method: str = "min-shift", scale: float | None = None
) -> Scores:
    """Metrics of distributions over the colors; the correlations are of ratings and scores, whatever distributions are made of them.

    Args:
        ratings: People's; each row is divided by its sum.
        predictions: A model's scores.
        distances: Between the colors of `ratings`, in its order.
        method: How a row of scores becomes a distribution: see `distribution`.
        scale: For softmax.
    """
    return Scores(
        NORMALIZED,
        {
            concept: (pearson(g, p), spearman(g, p), *_normalized(_ratings_distribution(g, concept), distribution(p, method, scale), distances))
            for concept, g, p in _rows(ratings, predictions)
        },
    )


def _normalized(g: Row, p: Row, distances: Float[np.ndarray, "K K"]) -> tuple[float, ...]:
    entropies = abs(negative_entropy(g) - negative_entropy(p))
    return total_variation(g, p), jensen_shannon(g, p), earth_movers(g, p, distances), entropies


def _rows(ratings: Associations, predictions: Associations) -> list[tuple[str, Row, Row]]:
    own, theirs = aligned(ratings, predictions)
    return list(zip(own.concepts, own.values, theirs.values, strict=True))


def _ratings_distribution(row: Row, concept: str) -> Row:
    if row.sum() <= 0:
        raise DataFormatError(f"The ratings of {concept!r} are all 0; they give no distribution.")
    return row / row.sum()


def distribution(row: Row, method: str = "min-shift", scale: float | None = None) -> Row:
    """A row of scores as a distribution over the colors.

    Args:
        row: Scores of one concept.
        method: min-shift takes the least score from all and divides by the sum, which keeps correlations and needs no scale; softmax is the
            distribution that the model was trained with.
        scale: What softmax multiplies the scores with.

    Raises:
        ConfigError: If there is no such method, or softmax gets no scale or none above 0.
    """
    if method == "min-shift":
        shifted = row - row.min()
        return shifted / shifted.sum() if shifted.sum() > 0 else np.full_like(row, 1 / len(row))
    if method != "softmax":
        raise ConfigError(f"--normalize is min-shift or softmax; got {method!r}.")
    if scale is None:
        raise ConfigError(
            "--normalize softmax needs the scale of the model's cosines, which only predictions of `vlm color run` bring along: give it with --scale."
        )
    if not 0 < scale < math.inf:
        raise ConfigError(f"--scale is what cosines are multiplied with, above 0; got {scale:g}.")
    powers = np.exp(scale * (row - row.max()))
    return powers / powers.sum()


def pearson(g: Row, p: Row) -> float:
    """Pearson's correlation; NaN if a row is constant."""
    return float(scipy_module("stats").pearsonr(g, p)[0]) if varies(g) and varies(p) else NAN


def varies(row: Row) -> bool:
    """False for a row that is constant but for rounding."""
    return bool(np.ptp(row) > ROUNDING * np.abs(row).max())


def spearman(g: Row, p: Row) -> float:
    """Spearman's rank correlation, equal values at their mean rank; NaN if a row is constant."""
    return float(scipy_module("stats").spearmanr(g, p)[0]) if varies(g) and varies(p) else NAN


def with_others(ratings: Associations, predictions: Associations) -> float:
    """Control: mean correlation of the scores of each concept with people's ratings of the other concepts; NaN for one concept, or if a row is constant.

    A model whose scores do not depend on the concept has the same correlation with its own concepts.
    """
    own, theirs = aligned(ratings, predictions)
    count = len(own.concepts)
    if count < 2 or not all(map(varies, [*own.values, *theirs.values])):
        return NAN
    between = np.corrcoef(theirs.values, own.values)[:count, count:]
    return float(between[~np.eye(count, dtype=bool)].mean())


def total_variation(g: Row, p: Row) -> float:
    """Half of the summed differences: 0 to 1 between distributions."""
    return float(0.5 * np.abs(g - p).sum())


def jensen_shannon(g: Row, p: Row) -> float:
    """Jensen-Shannon divergence in bits: 0 to 1."""
    middle = (g + p) / 2
    return max(0.0, (negative_entropy(g) + negative_entropy(p)) / (2 * math.log(2)) - negative_entropy(middle) / math.log(2))


def negative_entropy(row: Row) -> float:
    """Sum of x ln x, 0 where x is not positive; of a distribution its specificity in nats, the higher the fewer colors it points at."""
    return float(np.where(row > 0, row * np.log(np.where(row > 0, row, 1.0)), 0.0).sum())


def earth_movers(g: Row, p: Row, distances: Float[np.ndarray, "K K"]) -> float:
    """Least work that turns one distribution over colors into the other: mass times CIELAB distance.

    Mass that both have at a color stays there, which is optimal since distances obey the triangle inequality; the rest is a linear program.
    """
    surplus, deficit = np.flatnonzero(p > g), np.flatnonzero(g > p)
    if not len(surplus) or not len(deficit):
        return 0.0
    cost = distances[np.ix_(surplus, deficit)]
    gone, came = np.kron(np.eye(len(surplus)), np.ones(len(deficit))), np.kron(np.ones(len(surplus)), np.eye(len(deficit)))
    give, take = (p - g)[surplus], (g - p)[deficit]
    sparse = scipy_module("sparse").csr_array(np.concatenate([gone, came[:-1]]))  # the last equation follows from the others
    solved = scipy_module("optimize").linprog(cost.ravel(), A_eq=sparse, b_eq=np.concatenate([give, take[:-1]]), method="highs")
    assert solved.success, solved.message
    return float(solved.fun)

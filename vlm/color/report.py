"""One page about predicted associations beside people's: metrics, bars in the colors that they are of, ranks, prompts and models compared.

All pictures are SVG in the page, drawn by the template; nothing is loaded from elsewhere. Knows tables of numbers, not how they came about.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm.color.associations import Associations
from vlm.color.colors import Colors
from vlm.color.layout import Prediction
from vlm.color.metrics import WORDS, Scores, aligned, normalized_scores, raw_scores, scipy_module, unrated, varies, with_others
from vlm.color.prompts import ABSTRACT, NAMES_STYLE, OBJECTS
from vlm.color.study import NameCheck, check_names, severe_underestimates
from vlm.errors import listed
from vlm.pages import filled

LINES = ("#3b82c4", "#e07b39", "#3fa06f", "#c2528b", "#8b6fd0", "#a88a2c", "#3aa5b0", "#c9504c")  # read on white and on dark gray
STRONG = 0.5  # correlations from here on are highlighted, as in the study
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Compared:
    """A prediction beside the ratings of the same concepts and colors.

    Attributes:
        prediction: The prediction.
        ratings: People's, of its concepts.
        scores: Its scores, in the order of the ratings.
        normalized: Corrected metrics.
        raw: The study's metrics.
        unrated: Concepts of the prediction that nobody rated; they are in none of the others.
    """

    prediction: Prediction
    ratings: Associations
    scores: Associations
    normalized: Scores
    raw: Scores
    unrated: Sequence[str]

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.prediction.label

    @property
    def notes(self) -> list[str]:
        """What a reader of the means must know: which concepts are not in them, and which make a mean undefined."""
        notes = []
        if self.unrated:
            notes.append(f"{self.label}: nobody rated {listed(self.unrated)}; left out.")
        if extra := [color for color in self.prediction.scores.colors if color not in self.ratings.colors]:
            notes.append(f"{self.label}: of its colors nobody rated {listed(extra)}; left out.")
        if undefined := self.raw.undefined():
            notes.append(f"{self.label}: no correlation, and so no mean, because all values are equal for {listed(undefined)}.")
        return notes


def compare(prediction: Prediction, ratings: Associations, colors: Colors, *, method: str = "min-shift", scale: float | None = None) -> Compared:
    """A prediction with its metrics.

    Args:
        prediction: The prediction.
        ratings: People's ratings of `colors`, in its order.
        colors: The colors.
        method: How scores become distributions: see `metrics.distribution`.
        scale: For softmax; None for the prediction's own.
    """
    own, theirs = aligned(ratings, prediction.scores)
    normalized = normalized_scores(own, theirs, colors.distances(), method=method, scale=prediction.scale if scale is None else scale)
    return Compared(prediction, own, theirs, normalized, raw_scores(own, theirs), unrated(ratings, prediction.scores))


def means_row(compared: Compared, concreteness: Mapping[str, float]) -> dict[str, float]:
    """Means over the concepts, correlations with other concepts, of things and of abstract concepts, and how the correlation goes with concreteness."""
    by_concept = compared.normalized.column("PCC")
    return {
        **{name: compared.normalized.mean(name) for name in compared.normalized.names},
        "others": with_others(compared.ratings, compared.scores),
        "objects": _mean([by_concept[one] for one in by_concept if one in OBJECTS]),
        "abstract": _mean([by_concept[one] for one in by_concept if one in ABSTRACT]),
        "r": concreteness_trend(by_concept, concreteness)[0],
    }


def _means(one: Compared, concreteness: Mapping[str, float], color: str) -> dict[str, Any]:
    return {"label": one.label, "color": color, "raw": one.raw, "concepts": len(one.raw.by_concept), **means_row(one, concreteness)}


def concreteness_trend(correlations: Mapping[str, float], concreteness: Mapping[str, float]) -> tuple[float, float]:
    """Pearson's r of the correlations with concreteness and its p value; NaN with fewer than 3 concepts, or if all are alike."""
    pairs = [(concreteness[one], value) for one, value in correlations.items() if one in concreteness and not math.isnan(value)]
    x, y = (np.array(axis) for axis in zip(*pairs, strict=True)) if len(pairs) > 2 else (np.zeros(1), np.zeros(1))
    if not (varies(x) and varies(y)):
        return math.nan, math.nan
    found = scipy_module("stats").pearsonr(x, y)
    return float(found[0]), float(found[1])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def number(value: float, digits: int = 3) -> str:
    """A value for a table; a dash for NaN."""
    return NONE if math.isnan(value) else f"{value:.{digits}f}"


def render(
    predictions: Sequence[Prediction],
    ratings: Associations,
    colors: Colors,
    concreteness: Mapping[str, float],
    *,
    method: str = "min-shift",
    scale: float | None = None,
) -> str:
    """The page.

    Args:
        predictions: What is shown, style 5 as a check of color names.
        ratings: People's ratings.
        colors: The colors of the ratings, in their order.
        concreteness: By concept, 1 to 5.
        method: How scores become distributions.
        scale: For softmax; None for each prediction's own.

    Raises:
        DataFormatError: If a prediction lacks a color, or has no concept that was rated.
    """
    checks = [(one.label, check_names(one.scores.at(colors.names), colors)) for one in predictions if one.style == NAMES_STYLE]
    compared = [compare(one, ratings, colors, method=method, scale=scale) for one in predictions if one.style != NAMES_STYLE]
    concepts = list(dict.fromkeys(concept for one in compared for concept in one.ratings.concepts))
    values: dict[str, Any] = {
        "facts": f"{_count(len(concepts), 'concept')}, {len(colors)} colors, {_count(len(compared), 'prediction')}; ratings: {ratings.source}",
        "method": method,
        "means": [_means(one, concreteness, LINES[i % len(LINES)]) for i, one in enumerate(compared)],
        "notes": list(dict.fromkeys(note for one in compared for note in one.notes)),
        "metrics": compared[0].normalized.names if compared else (),
        "words": WORDS,
        "dots": _dots(compared, concepts),
        "cells": _cells(compared, concepts),
        "labels": [one.label for one in compared],
        "line_colors": [LINES[i % len(LINES)] for i in range(len(compared))],
        "cards": [_card(concept, compared, ratings, colors) for concept in concepts],
        "underestimated": underestimated(compared, colors),
        "cases": sum(value <= 0.2 for one in compared for value in one.normalized.column("PCC").values()),
        "scatters": [_scatter(one, concreteness, LINES[i % len(LINES)]) for i, one in enumerate(compared)],
        "checks": [{"label": label, "rows": rows, "right": _right(rows)} for label, rows in checks],
        "number": number,
        "strong": STRONG,
    }
    return filled(Path(__file__).with_name("report.html.j2"), values)


def _right(rows: Sequence[NameCheck]) -> str:
    known = [row.right for row in rows if row.right is not None]
    return f"{sum(known)} of {len(known)}"


def _dots(compared: Sequence[Compared], concepts: Sequence[str]) -> list[dict[str, Any]]:
    """Correlations by concept, the concepts with the best mean first."""
    columns = [one.normalized.column("PCC") for one in compared]
    rows = [{"concept": concept, "values": [column.get(concept, math.nan) for column in columns]} for concept in concepts]
    return sorted(rows, key=lambda row: -np.nan_to_num(np.nanmean(row["values"]) if not np.isnan(row["values"]).all() else -2.0))


def _cells(compared: Sequence[Compared], concepts: Sequence[str]) -> list[dict[str, Any]]:
    """All metrics of every concept, for the folded tables."""
    return [
        {
            "label": one.label,
            "names": one.normalized.names,
            "raw_names": one.raw.names,
            "rows": [
                (concept, one.normalized.by_concept[concept], one.raw.by_concept[concept]) for concept in concepts if concept in one.raw.by_concept
            ],
        }
        for one in compared
    ]


def _card(concept: str, compared: Sequence[Compared], ratings: Associations, colors: Colors) -> dict[str, Any]:
    """One concept: people's bars, and of each prediction bars and ranks."""
    people = ratings.of([concept]).values[0]
    own = []
    for i, one in enumerate(compared):
        if concept not in one.scores.concepts:
            continue
        scores = one.scores.of([concept]).values[0]
        points = zip(shared_ranks(people), shared_ranks(scores), colors.hexes, strict=True)
        own.append(
            {
                "label": one.label,
                "color": LINES[i % len(LINES)],
                "bars": bars(scores, colors, from_zero=False),
                "span": f"{scores.min():.3g} to {scores.max():.3g}",
                "pcc": one.normalized.column("PCC")[concept],
                "ranks": [(float(x), float(y), color) for x, y, color in points],
            }
        )
    return {
        "concept": concept,
        "people": bars(people, colors, from_zero=True),
        "span": f"{people.min():.3g} to {people.max():.3g}",
        "predictions": own,
    }


def shared_ranks(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Place of each color, the highest value at 1; equal values share the mean of their places, as in Spearman's correlation."""
    return scipy_module("stats").rankdata(-values)


def bars(values: Float[np.ndarray, " K"], colors: Colors, *, from_zero: bool) -> list[tuple[float, str]]:
    """Heights from 0 to 1 and colors, the highest first.

    Args:
        values: One for each color.
        colors: The colors.
        from_zero: True if 0 is the foot of the bars; else a little below the least value, because cosines lie close together.
    """
    low, high = float(values.min()), float(values.max())
    foot = 0.0 if from_zero else low - (0.04 * (high - low) if high > low else 1.0)  # equal scores: bars of full height
    span = high - foot if high > foot else 1.0
    hexes = colors.hexes
    return [(round(float(values[at] - foot) / span, 4), hexes[at]) for at in np.argsort(-values, kind="stable").tolist()]


def underestimated(compared: Sequence[Compared], colors: Colors, most: int = 12) -> list[dict[str, Any]]:
    """The colors that models most often miss: high with people, low with the model, where the two do not go together."""
    counts: dict[str, list[int]] = {name: [] for name in colors.names}
    for one in compared:
        own = one.normalized.column("PCC")
        for name, count in severe_underestimates(one.ratings, one.scores, own.__getitem__).items():
            counts[name].append(count)
    rows = [
        {"name": name, "hex": color, "counts": counts[name], "total": sum(counts[name])}
        for name, color in zip(colors.names, colors.hexes, strict=True)
    ]
    return sorted((row for row in rows if row["total"]), key=lambda row: -row["total"])[:most]


def _scatter(one: Compared, concreteness: Mapping[str, float], color: str) -> dict[str, Any]:
    """Concreteness against correlation."""
    own = one.normalized.column("PCC")
    r, p = concreteness_trend(own, concreteness)
    points = [(concreteness[concept], value, concept) for concept, value in own.items() if concept in concreteness and not math.isnan(value)]
    line = np.polyfit([x for x, _, _ in points], [y for _, y, _ in points], 1).tolist() if not math.isnan(r) else []
    return {"label": one.label, "color": color, "r": r, "p": p, "points": points, "line": line}

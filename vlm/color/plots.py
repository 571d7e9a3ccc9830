"""The study's pictures of one concept as PNG: scores sorted, bars in the colors that they are of, and the ranks of people and model against each other."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vlm.errors import MissingPackageError

DPI, SIDE = 300, 8  # inches
LABEL, TITLE = 25, 30  # points
WHITE = "#ffffff"

Row = Float[np.ndarray, " K"]


def ranks(scores: Row) -> Int[np.ndarray, " K"]:
    """Place of each color, the highest score at 1; of equal scores the earlier color first."""
    places = np.empty(len(scores), dtype=np.int64)
    places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return places


def draw_concept(concept: str, ratings: Row, scores: Row, hexes: list[str]) -> Iterator[tuple[str, bytes]]:
    """The study's four pictures of a concept: file names, and PNG at 300 dots an inch.

    Args:
        concept: The concept.
        ratings: People's ratings.
        scores: A model's scores.
        hexes: The colors.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    by_people, by_model = ranks(ratings), ranks(scores)
    yield f"{concept}_gt_scores.png", _scores(f"Ground truth scores for {concept}", ratings, by_people, hexes)
    yield f"{concept}_pred_scores.png", _scores(f"Predicted scores for {concept}", scores, by_model, hexes)
    yield f"{concept}_ranking_plot_by_gt.png", _ranking(concept, by_people, by_model, hexes, by="ground truth")
    yield f"{concept}_ranking_plot_by_pred.png", _ranking(concept, by_people, by_model, hexes, by="predicted")


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", needed_for="--plots", extra="color") from None
    figure = Figure(figsize=(SIDE, SIDE), layout="constrained")
    return figure, figure.subplots()


def _edges(hexes: list[str]) -> list[str]:
    return ["#000000" if color == WHITE else color for color in hexes]


def _scores(title: str, scores: Row, places: Int[np.ndarray, " K"], hexes: list[str]) -> bytes:
    figure, axis = _figure()
    axis.bar(places, scores, color=hexes, edgecolor=_edges(hexes), linewidth=1, width=0.8)
    axis.set_xlabel("Color", fontsize=LABEL)
    axis.set_ylabel("Score", fontsize=LABEL)
    axis.set_xticks([])
    axis.set_title(title, fontsize=TITLE, wrap=True)
    return _png(figure)


def _ranking(concept: str, by_people: Int[np.ndarray, " K"], by_model: Int[np.ndarray, " K"], hexes: list[str], *, by: str) -> bytes:
    """Bars from each color's rank on one side to the lowest, at its rank on the other side; perfect agreement is the diagonal."""
    figure, axis = _figure()
    count = len(hexes)
    if by == "ground truth":
        axis.bar(by_people, count - by_model, bottom=by_model, color=hexes, edgecolor=_edges(hexes))
    else:
        axis.barh(by_model, count - by_people, left=by_people, color=hexes, edgecolor=_edges(hexes))
    axis.plot([1, count], [1, count], color="black", linestyle="--", label="Perfect match (diagonal)")
    axis.invert_xaxis()
    axis.invert_yaxis()
    axis.set_xlabel("Ground truth rankings", fontsize=LABEL)
    axis.set_ylabel("Predicted rankings", fontsize=LABEL)
    axis.set_title(f"Comparison of rankings for {concept}\n(colored by {by} rankings)", fontsize=22)
    axis.legend()
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()

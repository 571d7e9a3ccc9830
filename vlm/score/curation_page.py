"""What the page about a selection shows: histogram, examples of each tenth, what was dropped and why. Two passes over the scores; holds counts and examples."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from vlm.data.image import load_image
from vlm.errors import DataFormatError, listed
from vlm.score.located import Pictures
from vlm.score.schema import INSIDE
from vlm.score.scores import Scores
from vlm.score.selection import NO_SCORE, Fate, Rules, Selection, is_kept, numbers

TEMPLATE = Path(__file__).with_name("curation.html.j2")
FINE_BINS = 20_000  # of cosines from -1 to 1: the borders of the tenths are right to 0.0001
NUM_TENTHS = 10
BARS = 40  # about as many
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # fine bins of a bar
EXAMPLES = 6  # of each tenth and of each reason
SHOWN_SIDE = 200  # pixels
SHOWN_VALUES = 30  # of the balanced column
REASONS = {
    Fate.NOT_SCORED: "without a score",
    Fate.BELOW_MIN: "below the least cosine",
    Fate.DUPLICATE: "duplicates",
    Fate.BELOW_TOP: "below the top share",
    Fate.OVER_SHARE: "more than the share of their value",
}

Shrink = Callable[[Any, int], tuple[str, bool]]  # a picture as a data URL of at most so many pixels, and whether its pixels are to be seen


def curation_values(scores: Scores, rules: Rules, selection: Selection, *, pictures: Pictures, out: str, shrink: Shrink) -> dict[str, Any]:
    """The values of `curation.html.j2`.

    Args:
        scores: The opened files.
        rules: What was asked for.
        selection: What came of it.
        pictures: Where the pictures are.
        out: Where the kept pairs are.
        shrink: Makes a small picture for the page.
    """
    counted = _Counted.of(scores, selection)
    chosen = _choose(scores, selection, counted)
    cards = _cards(scores, {row for rows in chosen for row in rows}, _Shown(pictures, shrink))
    groups = [[cards[row] for row in rows] for rows in chosen]
    names = listed(list(map(str, scores.files)), 3)
    return {
        "title": f"{selection.num_kept:,} of {scores.num_rows:,} pairs kept",
        "facts": [f"scores: {names}", f"kept pairs: {out}", f"better means: higher {rules.by}, then earlier"],
        "steps": selection.steps,
        "bars": counted.bars(),
        "tenths": [tenth | {"cards": group} for tenth, group in zip(counted.tenths(), groups[:NUM_TENTHS], strict=True)],
        "dropped": [
            {"reason": REASONS[step.fate], "rule": step.rule, "count": step.dropped, "cards": groups[NUM_TENTHS + step.fate - 1]}
            for step in selection.steps
            if step.dropped
        ],
        "statuses": sorted(selection.statuses.items(), key=lambda item: -item[1]),
        "balanced": rules.balance,
        "values": list(selection.values.items())[:SHOWN_VALUES],
        "num_values": len(selection.values),
    }


@dataclass(frozen=True)
class _Counted:
    """Rows with a score by their cosine, in fine bins, and those of them that are kept."""

    all: Int[np.ndarray, " F"]
    kept: Int[np.ndarray, " F"]

    @classmethod
    def of(cls, scores: Scores, selection: Selection) -> "_Counted":
        total, kept = np.zeros(FINE_BINS, dtype=np.int64), np.zeros(FINE_BINS, dtype=np.int64)
        for start, batch in scores.batches("cos"):
            fates = selection.fates[start : start + batch.num_rows]
            bins = _bins(batch)
            total += np.bincount(bins[fates != Fate.NOT_SCORED], minlength=FINE_BINS)
            kept += np.bincount(bins[is_kept(fates)], minlength=FINE_BINS)
        return cls(total, kept)

    @property
    def borders(self) -> Int[np.ndarray, " _"]:
        """The last fine bin of each tenth of the rows but the highest."""
        wanted = self.all.sum() * np.arange(1, NUM_TENTHS) / NUM_TENTHS
        return np.searchsorted(self.all.cumsum(), wanted)

    def tenths(self) -> list[dict[str, Any]]:
        """Range, rows and kept rows of each tenth, the lowest first."""
        edges = np.concatenate([[self.all.nonzero()[0][0] - 1], self.borders, [self.all.nonzero()[0][-1]]])
        return [
            {
                "low": _cosine(low + 1),
                "high": _cosine(high + 1),
                "count": int(self.all[low + 1 : high + 1].sum()),
                "kept": int(self.kept[low + 1 : high + 1].sum()),
            }
            for low, high in pairwise(edges)
        ]

    def bars(self) -> list[dict[str, Any]]:
        """The histogram: range, rows, kept rows, and heights in percent of the highest bar."""
        used = self.all.nonzero()[0]
        first, last = int(used[0]), int(used[-1])
        width = next((step for step in STEPS if (last - first) // step < BARS), STEPS[-1])
        starts = np.arange(first // width * width, last + 1, width)
        counts, kept = (np.array([int(bins[start : start + width].sum()) for start in starts]) for bins in (self.all, self.kept))
        most = counts.max()
        return [
            {
                "low": _cosine(start),
                "high": _cosine(start + width),
                "count": int(count),
                "kept": int(held),
                "height": 100 * count / most,
                "kept_height": 100 * held / most,
            }
            for start, count, held in zip(starts, counts, kept, strict=True)
        ]


def _bins(batch: Any) -> Int[np.ndarray, " n"]:
    """The fine bin of each row's cosine; of a row without, the lowest."""
    cos = np.nan_to_num(numbers(batch.column("cos"), "cos"), nan=-1.0)
    return ((cos.clip(-1, 1) + 1) / 2 * FINE_BINS).astype(np.int64).clip(0, FINE_BINS - 1)


def _cosine(fine: Any) -> float:
    """Where a fine bin begins."""
    return float(fine) * 2 / FINE_BINS - 1


def _choose(scores: Scores, selection: Selection, counted: _Counted) -> list[list[int]]:
    """Examples of each tenth, then of each reason, the same at each run."""
    lots = [_Lots() for _ in range(NUM_TENTHS + len(REASONS))]
    borders = counted.borders
    for start, batch in scores.batches("cos"):
        fates, tenth = selection.fates[start : start + batch.num_rows], np.searchsorted(borders, _bins(batch))
        for i in range(NUM_TENTHS):
            lots[i].add(start, (tenth == i) & (fates != Fate.NOT_SCORED))
        for fate in REASONS:
            lots[NUM_TENTHS + fate - 1].add(start, fates == fate)
    return [lot.rows.tolist() for lot in lots]


class _Lots:
    """A few rows of many, by a hash of their numbers: without a seed, and whatever the batches."""

    def __init__(self) -> None:
        self.rows = np.zeros(0, dtype=np.int64)

    def add(self, start: int, wanted: Bool[np.ndarray, " n"]) -> None:
        """Let the rows of a batch take part."""
        rows = np.concatenate([self.rows, start + np.flatnonzero(wanted)])
        self.rows = np.sort(rows[np.argsort(_mixed(rows), kind="stable")[:EXAMPLES]])


def _mixed(rows: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64's finalizer (Steele et al. 2014), which no two numbers share."""
    mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return mixed ^ mixed >> np.uint64(31)


@dataclass(frozen=True)
class _Shown:
    """How a picture comes onto the page."""

    pictures: Pictures
    shrink: Shrink

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as a card; a picture that cannot be shown is a sentence."""
        image, cos = row["image"] or "", row["cos"]
        said = row.get("error") or "" if row["status"] != "ok" else NO_SCORE if cos is None else ""
        card = {"image": image, "caption": row["caption"] or "", "cos": cos, "said": said, "status": row["status"], "url": "", "pixelated": False}
        if image.startswith(INSIDE):
            return card | {"fault": "lay in the scored table itself"}
        if (file := self.pictures.file(image)) is None:
            return card | {"fault": "a URL: pages load nothing from elsewhere"}
        try:
            url, pixelated = self.shrink(load_image(file), SHOWN_SIDE)
        except DataFormatError as error:
            return card | {"fault": str(error)}
        return card | {"url": url, "pixelated": pixelated, "fault": ""}


def _cards(scores: Scores, wanted: Iterable[int], shown: _Shown) -> dict[int, dict[str, Any]]:
    """The cards of some rows."""
    columns = [name for name in ("image", "caption", "status", "error", "cos") if name in scores.columns]
    rows = np.array(sorted(wanted), dtype=np.int64)
    cards = {}
    for start, batch in scores.batches(*columns):
        here = rows[(rows >= start) & (rows < start + batch.num_rows)]
        for row, values in zip(here.tolist(), batch.take(_indices(here - start)).to_pylist(), strict=True):
            cards[row] = shown(values)
    return cards


def _indices(places: Int[np.ndarray, " n"]) -> Any:
    import pyarrow

    return pyarrow.array(places)

"""What variants of an alignment find among pictures under names that they never saw: numbers beside chance, and examples. Used by the demo; knows no preset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.evaluate.contrastive_report import THUMBNAIL, metric_words
from vlm.evaluate.neighbors import of_retrieval
from vlm.evaluate.report import Table
from vlm.evaluate.retrieval import Retrieval
from vlm.evaluate.run_report import small_picture

EXAMPLES = 8  # names in the demo's report; `vlm evaluate retrieval` shows both directions of every variant
SHOWN_KS = (1, 5)


@dataclass(frozen=True)
class ShownPicture:
    """A picture that a name found.

    Attributes:
        data: The picture as a data URL.
        pixelated: Whether its pixels should be seen.
        right: Whether it is the name's own.
        name: Its own name.
    """

    data: str
    pixelated: bool
    right: bool
    name: str


@dataclass(frozen=True)
class Example:
    """A name and the pictures nearest to it.

    Attributes:
        name: What was looked for.
        place: Place of its own picture, from 1.
        found: The nearest pictures, nearest first.
    """

    name: str
    place: int
    found: Sequence[ShownPicture]


@dataclass(frozen=True)
class HeldOutRetrieval:
    """Variants of one alignment on held-out pictures.

    Attributes:
        measured: What `vlm evaluate retrieval` measured.
        variants: What each of its models is called here, by the model's name there.
        explanation: Sentences that say what was trained from what.
        page: Where the full page of `vlm evaluate retrieval` is, relative to the demo's report.
    """

    measured: Retrieval
    variants: Mapping[str, str]
    explanation: str
    page: str

    def summary(self) -> dict[str, Any]:
        """Recalls of each variant and the level of chance, under CLIP_benchmark's names; what is not defined is left out."""
        scores = {self.variants[result.model]: result.scores for result in self.measured.results}
        chance = {name: score.chance for name, score in next(iter(scores.values())).items()}
        return {
            "dataset": self.measured.data.name,
            "num_pictures": len(self.measured.data.pictures),
            "chance": _defined(chance),
            **{variant: _defined({name: score.value for name, score in own.items()}) for variant, own in scores.items()},
        }

    def table(self) -> Table:
        """R@1 and R@5 of each variant in both directions, and chance in the last row."""
        summary = self.summary()
        names = [name for name in summary["chance"] if int(name.rpartition("@")[2]) in SHOWN_KS]
        rows = [[row, *(f"{summary[row][name]:.3f}" for name in names)] for row in (*self.variants.values(), "chance")]
        title = f"Retrieval among {summary['num_pictures']} pictures whose names were held out: share found"
        return Table(title, ("heads", *map(metric_words, names)), rows)

    def examples(self) -> list[Example]:
        """Names chosen at random, failures among them, with what the first variant finds."""
        data, model = self.measured.data, self.measured.results[0].model
        captions = {owner: caption for owner, caption in zip(data.owners.tolist(), data.captions, strict=True)}

        def shown(item: int, right: bool) -> ShownPicture:
            return ShownPicture(*small_picture(data.pictures[item].open(), THUMBNAIL), right, captions[item])

        return [
            Example(data.captions[query.number], query.place[model], [shown(found.item, found.right) for found in query.found[model]])
            for query in of_retrieval(self.measured, EXAMPLES).to_pictures
        ]


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}

"""What a page of search results shows: each query, and the pictures that it found. Knows no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data.image import load_image
from vlm.errors import DataFormatError
from vlm.score.gallery import Item
from vlm.score.search import Nearest

TEMPLATE = Path(__file__).with_name("search.html.j2")
SHOWN_SIDE = 240  # pixels

Shrink = Callable[[Any, int], tuple[str, bool]]  # a picture as a data URL of at most so many pixels, and whether its pixels are to be seen


@dataclass(frozen=True)
class Query:
    """What was asked.

    Attributes:
        text: A text; empty for a picture.
        image: A picture's file; None for a text.
    """

    text: str = ""
    image: Path | None = None

    def __str__(self) -> str:
        return self.text if self.image is None else str(self.image)


def search_values(queries: Sequence[Query], found: Nearest, items: Sequence[Item], *, facts: Sequence[str], shrink: Shrink) -> dict[str, Any]:
    """The values of `search.html.j2`; a picture that cannot be opened any more is a sentence."""
    results = []
    for row, query in enumerate(queries):
        hits = zip(found.items[row].tolist(), found.cosines[row].tolist(), strict=True)
        results.append(
            {
                "text": query.text,
                "image": None if query.image is None else _shown(query.image, shrink),
                "name": "" if query.image is None else query.image.name,
                "hits": [{"item": items[number], "cosine": cosine, "picture": _shown(items[number].file, shrink)} for number, cosine in hits],
            }
        )
    return {"title": f"Nearest of {len(items):,} pictures", "facts": list(facts), "results": results}


def _shown(path: Path, shrink: Shrink) -> dict[str, Any]:
    try:
        url, pixelated = shrink(load_image(path), SHOWN_SIDE)
    except DataFormatError as error:
        return {"url": "", "pixelated": False, "fault": str(error)}
    return {"url": url, "pixelated": pixelated, "fault": ""}

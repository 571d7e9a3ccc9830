"""Twelve squares of one color each, with two captions: the smallest data that a dual encoder can be trained on and searched in."""

import json
from pathlib import Path

from PIL import Image

COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "orange", "brown", "gold", "navy", "teal")


def write_squares(folder: Path, name: str = "train", *, tint: int = 5) -> Path:
    """A JSON file of rows with `captions`, and its pictures beside it; another tint makes other pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, color in enumerate(COLORS):
        picture = Image.new("RGB", (40, 40), color)
        picture.paste((tint, number, 3), (0, 0, 9, 9))
        picture.save(folder / f"{name}-{color}.png")
        rows.append({"image": f"{name}-{color}.png", "captions": [f"a {color} square", f"something {color}"]})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path

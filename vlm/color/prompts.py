"""The five prompt styles of the study, its 20 concepts, and how concrete they are. Knows no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.color.files import read_lines, read_rows
from vlm.errors import ConfigError, DataFormatError

TEMPLATES = {
    1: "The color of the image represents the word {concept}.",
    2: "The concept {concept} is well represented by the color of the image.",
    3: "The color of the image is associated with the concept {concept}.",
    4: "The color of the image is associated with the concept {concept} with an association strength of {strength} out of 1.",
    5: "The color of the image is {concept}.",
}
STRENGTHS = tuple(round(0.1 * step, 1) for step in range(11))
STRENGTH_STYLE = 4
NAMES_STYLE = 5  # a check: the concepts are names of colors
COLOR_NAMES = {  # Berlin and Kay's basic terms, "yellow", the study's only one, first; with the sRGB of CSS, except for brown (CSS: #a52a2a, a red)
    "yellow": "#ffff00",
    "black": "#000000",
    "white": "#ffffff",
    "gray": "#808080",
    "red": "#ff0000",
    "green": "#008000",
    "blue": "#0000ff",
    "brown": "#8b4513",
    "orange": "#ffa500",
    "pink": "#ffc0cb",
    "purple": "#800080",
}

# The study's concepts with their concreteness, 1 (abstract) to 5: Brysbaert, Warriner and Kuperman 2014, doi 10.3758/s13428-013-0403-5, column Conc.M.
OBJECTS = {
    "apple": 5.0,
    "banana": 5.0,
    "carrot": 5.0,
    "celery": 4.8,
    "cherry": 4.62,
    "corn": 4.96,
    "eggplant": 4.97,
    "grape": 5.0,
    "mushroom": 4.83,
    "peach": 4.9,
}
ABSTRACT = {
    "comfort": 2.89,
    "driving": 3.96,
    "eating": 4.14,
    "efficiency": 2.15,
    "leisure": 2.03,
    "reliability": 1.83,
    "safety": 2.37,
    "sleeping": 4.23,
    "speed": 3.62,
    "working": 3.48,
}
CONCEPTS = tuple(sorted(OBJECTS | ABSTRACT))  # in the order of the study's files


@dataclass(frozen=True)
class Prompts:
    """What a model is asked in one style.

    Attributes:
        style: 1 to 5.
        concepts: The concepts; names of colors in style 5.
        texts: Of each concept its prompts: 11 strengths in style 4, one elsewhere.
    """

    style: int
    concepts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    @property
    def lines(self) -> list[str]:
        """All prompts, as the study's file lists them."""
        return [text for own in self.texts for text in own]


def make_prompts(style: int, concepts: Sequence[str] = ()) -> Prompts:
    """The prompts of a style.

    Args:
        style: 1 to 5.
        concepts: The concepts; none for the study's, or in style 5 for the basic color terms.

    Raises:
        ConfigError: If there is no such style, or a concept is there twice.
    """
    if style not in TEMPLATES:
        raise ConfigError(f"--prompt-style is 1 to 5; got {style}.")
    chosen = tuple(concepts) or (tuple(COLOR_NAMES) if style == NAMES_STYLE else CONCEPTS)
    if twice := [one for i, one in enumerate(chosen) if one in chosen[:i]]:
        raise ConfigError(f"The concept {twice[0]!r} is there twice.")
    strengths = STRENGTHS if style == STRENGTH_STYLE else ("",)
    return Prompts(style, chosen, tuple(tuple(TEMPLATES[style].format(concept=one, strength=s) for s in strengths) for one in chosen))


def read_concepts(path: Path | None) -> tuple[str, ...]:
    """One concept a line; none without a file.

    Raises:
        DataFormatError: If the file cannot be read or is empty.
    """
    return () if path is None else tuple(read_lines(path, what="The list of concepts"))


def read_concreteness(path: Path | None) -> Mapping[str, float]:
    """Concreteness by concept: that of the study's concepts, or of a CSV file with the columns Word and Conc.M, as published.

    Raises:
        DataFormatError: If the file cannot be read or is of another form.
    """
    if path is None:
        return OBJECTS | ABSTRACT
    header, *rows = read_rows(path, what="The file of concreteness ratings")
    if "Word" not in header or "Conc.M" not in header:
        raise DataFormatError(f"{path} has the columns {', '.join(header[:8])}; expected Word and Conc.M.")
    word, value = header.index("Word"), header.index("Conc.M")
    try:
        return {row[word]: float(row[value]) for row in rows if row[word]}
    except (IndexError, ValueError) as error:
        raise DataFormatError(f"{path} has a row whose Conc.M is no number: {error}.") from error

"""Zero-shot associations of a dual encoder: the cosine of each swatch with each concept's prompt. Knows no files and no names of models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm.color.associations import Associations
from vlm.color.colors import Colors, delta_e, hex_to_lab
from vlm.color.prompts import COLOR_NAMES, STRENGTHS, Prompts
from vlm.errors import CheckpointError

MODELS = {  # the study's names for its models
    "ViT-B/32": "clip-b32-224",
    "ViT-B/16": "clip-b16-224",
    "ViT-L/14": "clip-l14-224",
    "Microsoft/LLM2CLIP": "llm2clip-b16-224",
}


@dataclass(frozen=True)
class Answer:
    """What a model says to one style of prompts.

    Attributes:
        scores: The predicted associations: cosines, or in style 4 expected strengths from 0 to 1.
        cosines: The cosine of every prompt; of 11 prompts a concept in style 4, else the scores.
        scale: What the model multiplies cosines with.
    """

    scores: Associations
    cosines: Float[np.ndarray, "N K"]
    scale: float


def ask(model: Any, prompts: Prompts, colors: Colors, *, name: str) -> Answer:
    """Ask a dual encoder.

    Args:
        model: A `DualEncoder`.
        prompts: The prompts.
        colors: The colors.
        name: What it is called.

    Raises:
        CheckpointError: If it gives values that are not finite.
    """
    images, texts = model.encode_image(colors.swatches()), model.encode_text(prompts.lines)
    cosines = (texts @ images.T).float().cpu().numpy()
    if not np.isfinite(cosines).all():
        raise CheckpointError(f"The model {name} gave values that are not finite. Half precision may have overflowed; try --precision fp32.")
    scale = model.logit_scale()[0]
    return Answer(Associations(prompts.concepts, colors.names, reduced(cosines, len(prompts.concepts), scale), name), cosines, scale)


def reduced(cosines: Float[np.ndarray, "N K"], num_concepts: int, scale: float) -> Float[np.ndarray, "C K"]:
    """One score a concept: the cosine itself, or of 11 prompts the expected strength under the softmax of their scaled cosines.

    Args:
        cosines: Prompts by colors, the prompts of a concept beside each other.
        num_concepts: Number of concepts.
        scale: What the model multiplies cosines with.
    """
    if len(cosines) == num_concepts:
        return cosines
    by_strength = scale * cosines.reshape(num_concepts, len(STRENGTHS), -1).astype(np.float64)
    powers = np.exp(by_strength - by_strength.max(1, keepdims=True))
    return np.einsum("s,csk->ck", np.array(STRENGTHS), powers / powers.sum(1, keepdims=True))


@dataclass(frozen=True)
class NameCheck:
    """A color's name and the swatch that a model finds most like it.

    Attributes:
        name: The name.
        swatch: Hex of the swatch with the highest score.
        hue: Its hue angle in CIELAB, degrees from 0 to 360; None for a gray.
        nearest: The basic color term that it is nearest to.
        right: True if that is the name; None for a name that is no basic term.
    """

    name: str
    swatch: str
    hue: float | None
    nearest: str
    right: bool | None


def check_names(scores: Associations, colors: Colors) -> list[NameCheck]:
    """Whether the swatch with the highest score for a color's name has that color."""
    terms, chosen = list(COLOR_NAMES), scores.values.argmax(1)
    nearest = delta_e(colors.lab[chosen], hex_to_lab(list(COLOR_NAMES.values()))).argmin(1)
    return [
        NameCheck(name, colors.hexes[at], hue(colors.lab[at]), terms[term], terms[term] == name if name in terms else None)
        for name, at, term in zip(scores.concepts, chosen.tolist(), nearest.tolist(), strict=True)
    ]


def hue(lab: Float[np.ndarray, "3"]) -> float | None:
    """Hue angle in degrees, from red (0) over yellow (90), green (180) and blue (270); None where chroma is below 5."""
    return float(np.degrees(np.arctan2(lab[2], lab[1])) % 360) if np.hypot(lab[1], lab[2]) >= 5 else None


def severe_underestimates(
    ratings: Associations, predictions: Associations, correlations: Callable[[str], float], *, most: float = 0.2
) -> dict[str, int]:
    """Of each color, for how many concepts people have it in their top quartile and the model in its bottom one.

    Only concepts whose correlation is at most 0.2 are looked at, as in the study; a quartile of 71 colors is 17.

    Args:
        ratings: People's.
        predictions: A model's scores for the same concepts and colors.
        correlations: A concept's correlation.
        most: The highest correlation that is looked at.
    """
    quartile, counts = len(ratings.colors) // 4, dict.fromkeys(ratings.colors, 0)
    for concept, own, theirs in zip(ratings.concepts, ratings.values, predictions.values, strict=True):
        if not correlations(concept) <= most:
            continue
        for color in set(_first(-own, quartile)) & set(_first(theirs, quartile)):
            counts[ratings.colors[color]] += 1
    return counts


def _first(keys: Sequence[float] | np.ndarray, count: int) -> list[int]:
    return np.argsort(np.asarray(keys), kind="stable")[:count].tolist()

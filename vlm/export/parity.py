"""Whether an exported model is the one that it was made from: vectors and logits of a picture and some texts by both, in fp32.

Also what the foreign image processor makes of the picture. Knows no format.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm.models.contrastive import unit
from vlm.models.dual_encoder import DualEncoder

TOLERANCE = 1e-5  # of a value of a unit vector, and of a logit divided by the factor of the cosines: fp32's rounding through the layers
HEIGHT, WIDTH = 427, 640  # COCO's commonest size: the crop has margins of half a pixel at 224 and 336 pixels
TEXTS = (
    "a photo of a cat",
    "Two dogs play with a red ball.",
    "a blue bus in front of a house",
    "a man rides a horse along the beach while the sun goes down behind him and three birds fly by " * 4,
)


@dataclass(frozen=True)
class Vectors:
    """What a model says of pictures and texts.

    Attributes:
        image: Unit vectors of pictures.
        text: Unit vectors of texts.
        logits: Logit of each picture with each text.
    """

    image: Float[Tensor, "N J"]
    text: Float[Tensor, "M J"]
    logits: Float[Tensor, "N M"]


@dataclass(frozen=True)
class Foreign:
    """An exported model as the other library loads it.

    Attributes:
        encode: From normalized pixels and texts, which its own tokenizer reads, to what it says.
        processors: Its image processors by name: a picture to normalized pixels.
        notes: What the user should know of the folder.
    """

    encode: Callable[[Float[Tensor, "N 3 H W"], Sequence[str]], Vectors]
    processors: Mapping[str, Callable[[Image.Image], Float[Tensor, "3 H W"]]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Parity:
    """Largest differences between a model and its export, in fp32.

    Attributes:
        image: Of a value of a picture's unit vector, from the same pixels.
        text: Of a value of a text's unit vector.
        logits: Of a logit.
        scale: Factor of the cosines in the logits.
        pixels: Of a normalized pixel between ours and each foreign image processor's, by its name.
        vectors: Of a value of the picture's unit vector that this difference of pixels makes.
    """

    image: float
    text: float
    logits: float
    scale: float
    pixels: Mapping[str, float]
    vectors: Mapping[str, float]

    @property
    def is_equal(self) -> bool:
        """True if the differences are rounding; a NaN is not."""
        return all(value <= TOLERANCE for value in (self.image, self.text, self.logits / max(1.0, self.scale)))

    def lines(self) -> list[str]:
        """The differences in words."""
        said = [f"largest difference in fp32: image vectors {self.image:.2g}, text vectors {self.text:.2g}, logits {self.logits:.2g}"]
        for name, pixels in self.pixels.items():
            said.append(f"image processor {name}: pixels differ by up to {pixels:.2g} of a deviation, image vectors by {self.vectors[name]:.2g}")
        return said


def picture() -> Image.Image:
    """A picture with smooth and with noisy parts."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [127 + 100 * np.sin(rows / 37 + phase) * np.cos(columns / 53 - phase) for phase in (0.0, 1.3, 2.9)]
    noise = np.random.default_rng(0).normal(0, 1, (HEIGHT, WIDTH, 3)) * (columns[..., None] / WIDTH * 60)
    return Image.fromarray((np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8))


@torch.inference_mode()
def compare(model: DualEncoder, foreign: Foreign) -> Parity:
    """Ask both.

    Args:
        model: The model that was exported, in fp32 on the CPU.
        foreign: What the other library loaded.
    """
    image = picture()
    pixels = model.image.tower.normalize(model.pixels([image]))
    scale, bias = model.logit_scale()
    ours = vectors_of(model.encode_image([image]), model.encode_text(TEXTS), scale=scale, bias=bias)
    theirs = foreign.encode(pixels, list(TEXTS))
    seen = {name: process(image)[None].float() for name, process in foreign.processors.items()}
    return Parity(
        image=_difference(ours.image, theirs.image),
        text=_difference(ours.text, theirs.text),
        logits=_difference(ours.logits, theirs.logits),
        scale=scale,
        pixels={name: _difference(pixels, values) for name, values in seen.items()},
        vectors={name: _difference(theirs.image, foreign.encode(values, list(TEXTS)).image) for name, values in seen.items()},
    )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def vectors_of(image: Float[Tensor, "N J"], text: Float[Tensor, "M J"], *, scale: float, bias: float = 0.0) -> Vectors:
    """What a model says that gives vectors of any length."""
    image, text = unit(image), unit(text)
    return Vectors(image, text, scale * image @ text.T + bias)

"""Dual encoders by name: `X` is the published pair of `X-image` and `X-text`. The heads that one trains oneself come between any two encoders."""

from dataclasses import dataclass
from typing import Any

import torch

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import ImageSpec, build_image, joint_scale
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import TextSpec, build_text
from vlm.errors import ConfigError, UnknownNameError
from vlm.models.dual_encoder import DualEncoder


@dataclass(frozen=True)
class PublishedPair:
    """Two encoders that were trained together."""

    name: str
    image: ImageSpec
    text: TextSpec


def pair_names() -> list[str]:
    """Names of the published pairs."""
    return [name.removesuffix("-image") for name in IMAGE if name.endswith("-image") and f"{name.removesuffix('-image')}-text" in TEXT]


def find_pair(name: str) -> PublishedPair:
    """The pair of a name, `clip-b32-224` or `open-clip:<model>:<tag or file>`.

    Raises:
        UnknownNameError: If there is none.
    """
    if name.startswith("open-clip:"):
        return PublishedPair(name, IMAGE[name], TEXT[name])
    names = pair_names()
    if name not in names:
        raise UnknownNameError("dual encoder", name, names)
    return PublishedPair(name, IMAGE[f"{name}-image"], TEXT[f"{name}-text"])


def build_pair(pair: PublishedPair, *, source: str | None = "", dtype: torch.dtype = torch.float32) -> DualEncoder:
    """A published pair as a model, in evaluation mode.

    Args:
        pair: From `find_pair`.
        source: Folder or hub id of both halves; empty: the registry's; None: random weights.
        dtype: Type of the weights.

    Raises:
        CheckpointError: If weights cannot be found or are of another model.
        ConfigError: If the vectors of the two have different widths.
    """
    if pair.image.width != pair.text.width:
        raise ConfigError(f"{pair.name}: vectors of images have width {pair.image.width}, of texts {pair.text.width}; they share no space.")
    loads = [Load(spec.source if source == "" else source, dtype) for spec in (pair.image, pair.text)]
    image, text = build_image(pair.image, loads[0]), build_text(pair.text, loads[1])
    scale: Any = joint_scale(pair.image, loads[0])
    return DualEncoder(image, text, None, scale=scale).eval()

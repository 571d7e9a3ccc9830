"""Dual encoders from names: the published pair of `X-image` and `X-text`, or any two encoders with the heads that a run trains between them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm.backbones.fingerprint import fingerprint
from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import ImageSpec, build_image, joint_scale
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import TextSpec, build_text
from vlm.conf.contrastive import DistillConfig, DualEncoderConfig
from vlm.errors import CheckpointError, ConfigError, UnknownNameError
from vlm.models.alignment_head import AlignmentHead, check_head
from vlm.models.checkpoint import load_trained, read_manifest
from vlm.models.contrastive import CONTRASTS, Distillation, LogitScale
from vlm.models.dual_encoder import AlignmentHeads, DualEncoder, Goal
from vlm.types import World

OPEN_CLIP = "open-clip:"  # begins the names of pairs whose halves have the same name
SIDES: dict[str, tuple[Any, Any]] = {"image": (IMAGE, build_image), "text": (TEXT, build_text)}


@dataclass(frozen=True)
class DualParts:
    """A config with its names resolved; known before any download."""

    image: ImageSpec
    text: TextSpec
    joint_width: int


def resolve_dual(config: DualEncoderConfig) -> DualParts:
    """Look up both encoders and the width of their joint space.

    Raises:
        UnknownNameError: If a name is unknown; the nearest ones are given.
        ConfigError: If a side without a head does not have the width of the joint space, or a head has a setting without effect.
    """
    for head in (config.image_head, config.text_head):
        check_head(head)
    image, text = IMAGE[config.image], TEXT[config.text]
    width = config.joint_width or (text.width if config.image_head.kind != "identity" and config.text_head.kind == "identity" else image.width)
    for side, spec, head in (("image", image, config.image_head), ("text", text, config.text_head)):
        if head.kind == "identity" and spec.width != width:
            raise ConfigError(
                f"The {side} side has no head, so its vectors of width {spec.width} must have the joint space's width, which is {width}. "
                f"Set --model.{side}-head.kind (linear is the smallest), or --model.joint-width {spec.width}."
            )
    return DualParts(image, text, width)


def build_heads(config: DualEncoderConfig, *, distill: DistillConfig | None = None, world: World | None = None, seed: int = 0) -> AlignmentHeads:
    """The heads at random.

    Args:
        config: The composition.
        distill: Distillation of the run that trains them; None for none.
        world: The processes that share a batch.
        seed: Seed of their start.
    """
    parts = resolve_dual(config)
    spec = CONTRASTS[config.loss]
    goal = Goal(config.loss)
    if distill is not None and distill.teacher:
        goal = Goal(config.loss, Distillation(structure=distill.structure), weight=distill.weight, texts_weight=distill.texts_weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_head = AlignmentHead(parts.image.width, parts.joint_width, config.image_head)
        text_head = AlignmentHead(parts.text.width, parts.joint_width, config.text_head)
    return AlignmentHeads(image_head, text_head, LogitScale(spec.scale, spec.bias), goal=goal, world=world)


def source_of(side: str, name: str, source: str = "") -> str:
    """Where an encoder's weights come from: what is given, or else the registry's; empty for random ones.

    Args:
        side: image or text.
        name: The encoder.
        source: Folder or hub id; empty: the registry's.
    """
    return source or str(SIDES[side][0][name].source or "")


def build_encoder(side: str, name: str, source: str = "", *, dtype: torch.dtype = torch.float32) -> Any:
    """An image or text encoder, in evaluation mode.

    Args:
        side: image or text.
        name: The encoder.
        source: Folder or hub id; empty: the registry's.
        dtype: Type of the weights.

    Raises:
        CheckpointError: If its weights cannot be found or are of another model.
    """
    registry, build = SIDES[side]
    return build(registry[name], Load(source_of(side, name, source) or None, dtype))


def native_text(config: DualEncoderConfig) -> str:
    """The text encoder that was trained together with the image encoder.

    Raises:
        ConfigError: If there is none.
    """
    name = f"{IMAGE.resolve(config.image).removesuffix('-image')}-text"
    if name not in TEXT:
        raise ConfigError(
            f"{config.image} was trained without a text encoder of its own, so --stage.distill.teacher native names nothing. Name one of `vlm list text`."
        )
    return name


@dataclass(frozen=True)
class PublishedPair:
    """Two encoders that were trained together."""

    name: str
    image: ImageSpec
    text: TextSpec

    def encoder(self, side: str) -> str:
        """The registry's name of its image or text half."""
        return self.name if self.name.startswith(OPEN_CLIP) else f"{self.name}-{side}"


def pair_names() -> list[str]:
    """Names of the published pairs."""
    return [name.removesuffix("-image") for name in IMAGE if name.endswith("-image") and f"{name.removesuffix('-image')}-text" in TEXT]


def find_pair(name: str) -> PublishedPair:
    """The pair of a name, `clip-b32-224` or `open-clip:<model>:<tag or file>`.

    Raises:
        UnknownNameError: If there is none.
    """
    if name.startswith(OPEN_CLIP):
        return PublishedPair(name, IMAGE[name], TEXT[name])
    names = pair_names()
    if name not in names:
        raise UnknownNameError("dual encoder", name, names)
    return PublishedPair(name, IMAGE[f"{name}-image"], TEXT[f"{name}-text"])


def build_pair(
    pair: PublishedPair, *, image_source: str | None = "", text_source: str | None = "", dtype: torch.dtype = torch.float32
) -> DualEncoder:
    """A published pair as a model, in evaluation mode.

    Args:
        pair: From `find_pair`.
        image_source: Folder or hub id of the image half; empty: the registry's; None: random weights.
        text_source: The same of the text half.
        dtype: Type of the weights.

    Raises:
        CheckpointError: If weights cannot be found or are of another model.
        ConfigError: If the vectors of the two have different widths.
    """
    if pair.image.width != pair.text.width:
        raise ConfigError(f"{pair.name}: vectors of images have width {pair.image.width}, of texts {pair.text.width}; they share no space.")
    sides = ((pair.image, image_source), (pair.text, text_source))
    loads = [Load(spec.source if source == "" else source, dtype) for spec, source in sides]
    image, text = build_image(pair.image, loads[0]), build_text(pair.text, loads[1])
    scale: Any = joint_scale(pair.image, loads[0])
    return DualEncoder(image, text, None, scale=scale).eval()


def build_dual(folder: Path, *, image_source: str = "", text_source: str = "", dtype: torch.dtype = torch.float32) -> DualEncoder:
    """The dual encoder of a checkpoint: encoders from their sources, checked against their fingerprints, then the heads.

    Args:
        folder: A checkpoint of heads.
        image_source: Another folder for the image encoder.
        text_source: Another folder for the text encoder.
        dtype: Type of the encoders' weights; heads are in fp32.

    Raises:
        CheckpointError: If an encoder is not the one that the heads were trained with, or weights are missing.
    """
    manifest = read_manifest(folder)
    stored: DualEncoderConfig = manifest.config
    config = replace(stored, image_source=image_source or stored.image_source, text_source=text_source or stored.text_source)
    encoders = {
        "image": build_encoder("image", config.image, config.image_source, dtype=dtype),
        "text": build_encoder("text", config.text, config.text_source, dtype=dtype),
    }
    for side, encoder in encoders.items():
        seen, expected = fingerprint(encoder, adapters=True), manifest.fingerprints[side]
        if seen != expected:
            raise CheckpointError(
                f"The {side} encoder is not the one that the heads in {folder} were trained with: fingerprint {seen[:12]}, expected {expected[:12]}. "
                f"Give the folder of the original weights as {side}_source."
            )
    heads = build_heads(config)
    load_trained(heads, folder)
    return DualEncoder(encoders["image"], encoders["text"], heads, config=config, trained_on=manifest.trained_on).eval()

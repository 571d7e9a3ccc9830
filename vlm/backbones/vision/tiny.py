"""Backbones of a few thousand random weights for tests: the real transformers classes, the same weights for the same name in every process."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision.base import CLIP_ATTENTION, IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, VIT_ATTENTION, VisionSpec
from vlm.backbones.vision.clip import clip
from vlm.backbones.vision.dinov2 import dinov2
from vlm.backbones.vision.fused import fused_spec
from vlm.backbones.vision.siglip import siglip

Spec = TypeVar("Spec")
Tower = TypeVar("Tower")

RANDOM = "random"  # the `source` of these specs; a folder with a saved model of the same size is loaded instead
SEED = 0
SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
IMAGE_SIZE = 32


def seeded(build: Callable[[Spec, Load], Tower], spec: Spec, load: Load) -> Tower:
    """What `build` makes, with weights from a fixed seed unless a folder is given; the caller's random state is untouched."""
    if load.source == RANDOM:
        load = replace(load, source=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(spec, load)


_siglip = VisionSpec(
    build=partial(seeded, siglip),
    source=RANDOM,
    architecture=SIZE | {"intermediate_size": 32, "image_size": IMAGE_SIZE, "vision_use_head": True},
    width=16,
    image_size=IMAGE_SIZE,
    num_patches=16,
    num_parameters=12_256,
    lora_targets=CLIP_ATTENTION,
    license="none: random weights",
    paper="none: for tests",
)

SPECS = {
    "tiny-siglip": _siglip,
    "tiny-clip": replace(
        _siglip,
        build=partial(seeded, clip),
        architecture=SIZE | {"intermediate_size": 32, "image_size": IMAGE_SIZE},
        num_parameters=10_096,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
    ),
    "tiny-dinov2": replace(
        _siglip,
        build=partial(seeded, dinov2),
        # 56 px: position embeddings of a 7x7 grid, interpolated to 4x4 as the real ones are
        architecture=SIZE | {"mlp_ratio": 2, "image_size": 56, "num_register_tokens": 4},
        num_parameters=10_784,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        lora_targets=VIT_ATTENTION,
    ),
}
SPECS["tiny-fused"] = replace(fused_spec({name: SPECS[name] for name in ("tiny-dinov2", "tiny-siglip")}), source=RANDOM)

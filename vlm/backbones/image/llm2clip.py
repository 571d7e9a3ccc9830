"""The image half of LLM2CLIP (Huang et al. 2024, arXiv:2411.04997): OpenAI's CLIP tower, trained further, with a projection into 1,280 dimensions.

A checkpoint holds both halves in one safetensors file: `vision_model.*` and `visual_projection.weight` are read here, `text_adapter.*` belongs to the
text half. Its own code does not run on transformers 5 and is not needed.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from vlm.backbones.image.base import ImageSpec, PooledImage, revision_of
from vlm.backbones.image.clip import clip_spec
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.vision.clip import SPECS as VISION
from vlm.backbones.weight_files import read_tensors
from vlm.errors import CheckpointError

WIDTH = 1280
OTHER_HALF = ("text_", "logit_scale")  # beginnings of names that the image half leaves alone


def llm2clip(spec: ImageSpec, load: Load) -> PooledImage:
    """The class token after the last norm, projected; every tensor of the image half is matched.

    Raises:
        CheckpointError: If the checkpoint cannot be read, lacks a tensor, has one too many or one of another shape.
    """
    tower: Any = spec.tower.build(spec.tower, Load(source=None))
    projection = nn.Linear(spec.tower.width, spec.width, bias=False)
    if load.source is not None:
        _load(nn.ModuleDict({"vision_model": tower.model, "visual_projection": projection}), spec, load)
    return PooledImage(spec, tower, projection=projection).to(load.dtype)


def _load(half: nn.Module, spec: ImageSpec, load: Load) -> None:
    assert load.source is not None
    stored = read_tensors(load.source, _is_ours, revision=revision_of(spec, load))
    own = half.state_dict()
    wrong = {
        "lacks": sorted(own.keys() - stored.keys()),
        "has unknown": sorted(stored.keys() - own.keys()),
        "has of another shape": sorted(name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what} {len(names)} tensors, among them {', '.join(names[:3])}" for what, names in wrong.items() if names)
        raise CheckpointError(f"{load.source} is no image half of {spec.source}: it {listed}.")
    half.load_state_dict(stored)


def _is_ours(name: str) -> bool:
    return not name.startswith(OTHER_HALF) and not name.endswith("position_ids")  # a constant that old versions of transformers stored


def _spec(vision: VisionSpec, *, source: str, revision: str = "") -> ImageSpec:
    """LLM2CLIP's training of one of OpenAI's towers."""
    trained = replace(vision, source=source, license="Apache-2.0", paper="arXiv:2411.04997")
    return replace(clip_spec(trained, width=WIDTH), build=llm2clip, revision=revision)


SPECS = {
    # the pinned revision holds both halves; an older one is a vision tower alone
    "llm2clip-b16-224-image": _spec(
        VISION["clip-b16-224"], source="microsoft/LLM2CLIP-Openai-B-16", revision="ecfb347eb3dcfeb2fbc2a2eae7de6ac5a001aaf8"
    ),
    "llm2clip-l14-224-image": _spec(VISION["clip-l14-224"], source="microsoft/LLM2CLIP-Openai-L-14"),
    "llm2clip-l14-336-image": _spec(VISION["clip-l14-336"], source="microsoft/LLM2CLIP-Openai-L-14-336"),
}

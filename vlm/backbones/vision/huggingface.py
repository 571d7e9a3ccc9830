"""Any CLIP, SigLIP or DINOv2 (with registers) tower that transformers loads, by hub id or folder: `hf:<id or folder>`.

Sizes come from its config.json, pixel statistics and filter from its preprocessor_config.json, or the family's where that file is missing. A folder
whose config.json says `{"model_type": "fused", "parts": [...]}` has one subfolder for each tower of a fused backbone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vlm.backbones.loading import Load, is_folder, read_config, read_json
from vlm.backbones.vision.base import CLIP_ATTENTION, HALF, IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, VIT_ATTENTION, VisionSpec
from vlm.backbones.vision.clip import clip
from vlm.backbones.vision.dinov2 import dinov2
from vlm.backbones.vision.fused import fused_spec
from vlm.backbones.vision.siglip import siglip
from vlm.errors import CheckpointError

FUSED = "fused"
PREFIX_TOKENS = "num_prefix_tokens"  # in config.json: tokens left out before the patches, where they are not the family's own
COMMON = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
FILTERS: dict[int, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Family:
    """What a model type says beside its sizes.

    Attributes:
        build: Makes the tower.
        sizes: Config values that size it, beside the common ones.
        prefix_tokens: Class token and registers, as a function of the config.
        mean: Channel means of its published preprocessing.
        std: Channel deviations.
        lora_targets: Default layers of an adapter.
    """

    build: Callable[..., nn.Module]
    sizes: tuple[str, ...]
    prefix_tokens: Callable[[Any], int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    lora_targets: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "clip_vision_model": Family(clip, ("intermediate_size", "hidden_act"), lambda _: 1, OPENAI_MEAN, OPENAI_STD, CLIP_ATTENTION),
    "siglip_vision_model": Family(siglip, ("intermediate_size", "hidden_act", "vision_use_head"), lambda _: 0, HALF, HALF, CLIP_ATTENTION),
    "dinov2_with_registers": Family(
        dinov2, ("mlp_ratio", "num_register_tokens"), lambda config: 1 + config.num_register_tokens, IMAGENET_MEAN, IMAGENET_STD, VIT_ATTENTION
    ),
}


def from_config_file(source: str) -> VisionSpec:
    """The spec that a `config.json` implies; reads that file when called, from the folder or the hub.

    Raises:
        CheckpointError: If there is no such file, or it is of another kind of model.
    """
    if is_folder(source) and (values := read_json(Path(source) / "config.json")).get("model_type") == FUSED:
        return _fused(Path(source), values)
    import transformers

    config = read_config(transformers.AutoConfig, source)
    config = getattr(config, "vision_config", config)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CheckpointError(f"{source} is a model of type {config.model_type!r}; as a vision backbone, hf: takes {', '.join(FAMILIES)}.")
    architecture = {name: getattr(config, name, None) for name in (*COMMON, *family.sizes)}
    own = family.prefix_tokens(config)
    dropped = getattr(config, PREFIX_TOKENS, own)
    statistics = _statistics(source)
    spec = VisionSpec(
        build=partial(family.build, num_prefix_tokens=dropped) if dropped != own else family.build,
        source=source,
        architecture=architecture,
        width=config.hidden_size,
        image_size=config.image_size,
        num_patches=(config.image_size // config.patch_size) ** 2 + own - dropped,
        num_parameters=0,
        mean=_three(statistics.get("image_mean", family.mean), source),
        std=_three(statistics.get("image_std", family.std), source),
        resample=_filter(statistics.get("resample", 3), source),
        lora_targets=family.lora_targets,
        license="see the model's page",
        paper="",
    )
    with torch.device("meta"):
        tower = spec.build(spec, Load(None))
    return replace(spec, num_parameters=sum(weight.numel() for weight in tower.parameters()))


def _statistics(source: str) -> dict[str, Any]:
    if is_folder(source):
        path = Path(source) / "preprocessor_config.json"
        return read_json(path) if path.is_file() else {}
    from transformers.utils.hub import cached_file

    found = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(found).read_text(encoding="utf-8")) if found else {}


def _three(values: Any, source: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise CheckpointError(f"The preprocessor_config.json of {source} has {values!r} for image_mean or image_std; expected three numbers.")
    red, green, blue = map(float, values)
    return red, green, blue


def _filter(number: Any, source: str) -> Literal["bicubic", "bilinear"]:
    if number not in FILTERS:
        raise CheckpointError(f"The preprocessor_config.json of {source} resizes with PIL's filter {number!r}; known: 2 (bilinear), 3 (bicubic).")
    return FILTERS[number]


def _fused(folder: Path, values: Mapping[str, Any]) -> VisionSpec:
    names = values.get("parts")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / 'config.json'} is of a fused backbone, but names no parts.")
    parts = {name: from_config_file(str(folder / name)) for name in names}
    return fused_spec(parts)


OPEN_SPECS = {"hf:<id or folder>": from_config_file}

"""Any image model of timm (Wightman 2019, doi:10.5281/zenodo.4414861) by its name there: `timm:vit_base_patch16_clip_224.openai`, `timm:resnet50`.

Sizes come from the model itself, built on the meta device; nothing is downloaded for them. A ViT gives the patches of its last block but one, a
network of shrinking feature maps (a CNN, Swin) its last map, row by row.
"""

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from vlm.backbones.loading import Load, check_complete, require
from vlm.backbones.lora import linear_layers
from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.backbones.vision.base import Normalize, VisionSpec, position_of_layer
from vlm.errors import WEIGHTS_REMEDY, CheckpointError, ConfigError, UnknownNameError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # what timm's folders on the hub hold


class Skeleton(NamedTuple):
    """A timm model without memory, and the place of its features."""

    model: Any
    position: int
    image_size: int


class TimmVision(nn.Module):
    """A timm model as a vision backbone."""

    def __init__(self, model: nn.Module, *, spec: VisionSpec, feature_layer: int | None = None):
        """Wrap a model.

        Args:
            model: A timm model without classifier.
            spec: Its spec.
            feature_layer: Which of timm's features: 1 to the number of blocks (or stages), -1 the last; None for the spec's own.

        Raises:
            ConfigError: If the model has no such features.
        """
        super().__init__()
        self.model, self.normalize = model, Normalize(spec)
        skeleton = _skeleton(spec.architecture["name"], spec.feature_layer if feature_layer is None else feature_layer)
        self.position, self.image_size = skeleton.position, spec.image_size
        self.num_patches, self.width, self.pooled_width = _sizes(skeleton)

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Patch features of the chosen block or stage; later ones are not run."""
        return _features(self.model, self._normalized(pixels), self.position)

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """What timm's classifier would see."""
        return self.model(self._normalized(pixels))

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks or stages whose outputs timm names as features."""
        modules = [self.model.get_submodule(info["module"]) for info in _feature_info(self.model)]
        return tuple(module for module in modules if any(True for _ in module.parameters()))

    def _normalized(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        return self.normalize(pixels).to(next(self.model.parameters()).dtype)


def timm_vision(spec: VisionSpec, load: Load) -> nn.Module:
    """A timm model, random, with timm's published weights, or with those of a file or folder in timm's layout.

    Raises:
        CheckpointError: If the weights cannot be found, or lack a tensor.
        MissingPackageError: If timm is not installed.
    """
    name = spec.architecture["name"]
    timm = _timm(name)
    published = load.source == spec.source
    try:
        model = timm.create_model(name, pretrained=published, num_classes=0)
    except (OSError, RuntimeError) as error:  # RuntimeError: a model without published weights
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"Weights of timm:{name} could not be loaded ({first}). {WEIGHTS_REMEDY}") from error
    if load.source is not None and not published:
        _load_file(model, Path(load.source))
    return TimmVision(model.to(load.dtype), spec=spec, feature_layer=load.feature_layer)


def _load_file(model: nn.Module, path: Path) -> None:
    from timm.models import load_state_dict

    if path.is_dir():
        path = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), path / WEIGHT_FILES[0])
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Name a file in timm's layout, or a folder with {' or '.join(WEIGHT_FILES)}.")
    try:
        missing, _ = model.load_state_dict(load_state_dict(str(path)), strict=False)  # a classifier may be left over
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} does not fit: {' '.join(str(error).split())[:300]}") from error
    check_complete({"missing_keys": missing, "mismatched_keys": ()}, path)


def timm_spec(name: str) -> VisionSpec:
    """The spec of any timm model, with or without a tag of weights.

    Raises:
        UnknownNameError: If timm has no such model or tag; the nearest names are given.
        ConfigError: If the model gives no inner features, or does not take square images.
        MissingPackageError: If timm is not installed.
    """
    timm = _timm(name)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError("timm model", name, difflib.get_close_matches(architecture, timm.list_models(), n=8, cutoff=0.4))
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        raise UnknownNameError("timm model", name, [architecture, *tagged])
    skeleton = _skeleton(name, None)
    num_patches, width, pooled_width = _sizes(skeleton)
    cfg = skeleton.model.pretrained_cfg
    return VisionSpec(
        build=timm_vision,
        source=f"timm/{name}",
        architecture={"name": name},
        width=width,
        pooled_width=pooled_width,
        image_size=skeleton.image_size,
        num_patches=num_patches,
        num_parameters=sum(parameter.numel() for parameter in skeleton.model.parameters()),
        mean=cfg["mean"],
        std=cfg["std"],
        resample="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
        feature_layer=skeleton.position,
        license=cfg.get("license") or f"see https://huggingface.co/timm/{name}",
        paper=cfg.get("paper_ids") or "doi:10.5281/zenodo.4414861",
        package="timm",
        lora_targets=_attention_layers(skeleton.model),
    )


def _attention_layers(model: nn.Module) -> tuple[str, ...] | str:
    """What timm calls the projections of this model's attention; `all-linear` if it has none of that name."""
    return tuple(sorted({name.split(".")[-1] for name in linear_layers(model) if ".attn." in name})) or "all-linear"


def _timm(name: str) -> Any:
    require("timm", f"The vision backbone timm:{name}", extra="timm")
    prepare_torchvision()
    import timm

    return timm


@functools.cache
def _skeleton(name: str, feature_layer: int | None) -> Skeleton:
    with torch.device("meta"):
        model = _timm(name).create_model(name, pretrained=False, num_classes=0).eval()
    _, height, width = model.pretrained_cfg["input_size"]
    if height != width:
        raise ConfigError(f"timm:{name} takes images of {height}x{width} pixels; only square ones are supported.")
    info = _feature_info(model)
    if feature_layer is None:
        feature_layer = -2 if len({entry["reduction"] for entry in info}) == 1 else -1
    position = position_of_layer(feature_layer, depth=len(info), source=f"timm:{name}")
    if position == 0:
        raise ConfigError(f"feature_layer {feature_layer} asks for the embeddings of timm:{name}, which timm does not give; 1 is the first block.")
    return Skeleton(model, position, height)


def _feature_info(model: Any) -> list[dict[str, Any]]:
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"timm's {type(model).__name__} offers no inner features (forward_intermediates); choose another model.")
    return list(model.feature_info)


def _features(model: Any, images: Float[Tensor, "N 3 H W"], position: int) -> Float[Tensor, "N P D"]:
    (features,) = model.forward_intermediates(images, indices=[position - 1], norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True)
    return features.flatten(2).transpose(1, 2).contiguous()


def _sizes(skeleton: Skeleton) -> tuple[int, int, int]:
    """Patches, width and pooled width, from a pass on the meta device."""
    image = torch.empty(1, 3, skeleton.image_size, skeleton.image_size, device="meta")
    with torch.no_grad():
        _, num_patches, width = _features(skeleton.model, image, skeleton.position).shape
        return num_patches, width, skeleton.model(image).shape[-1]


OPEN_SPECS = {"timm:<name>": timm_spec}

SPECS = {
    "in1k-vit-l16-224-augreg": VisionSpec(
        build=timm_vision,
        source="timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        architecture={"name": "vit_large_patch16_224.augreg_in21k_ft_in1k"},
        width=1024,
        image_size=224,
        num_patches=196,
        num_parameters=303_301_632,
        license="Apache-2.0",
        paper="arXiv:2106.10270",
        aliases=("in1k-vit-l",),
        lora_targets=("qkv", "proj"),
        package="timm",
    ),
}

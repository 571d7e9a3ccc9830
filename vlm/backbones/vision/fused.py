"""Backbones that join several towers on the channel axis: DINOv2 with CLIP or SigLIP, as in Prismatic (Karamcheti et al. 2024, arXiv:2402.07865).

Every tower gets the same uint8 tiles and normalizes them itself. A picture that is padded gets one color, the first tower's, which the others do
not see as zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.backbones.vision import clip as clip_module
from vlm.backbones.vision import dinov2 as dinov2_module
from vlm.backbones.vision import siglip as siglip_module
from vlm.backbones.vision.base import VisionSpec
from vlm.errors import ConfigError


class FusedVision(nn.Module):
    """Towers side by side; patch i of the result is patch i of every tower."""

    def __init__(self, towers: Sequence[Any]):
        """Join towers of equal tile size and patch count."""
        super().__init__()
        self.towers: Any = nn.ModuleList(towers)
        self.width, self.pooled_width = sum(tower.width for tower in towers), sum(tower.pooled_width for tower in towers)
        self.image_size, self.num_patches = towers[0].image_size, towers[0].num_patches

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Patch features of all towers, in their order."""
        return torch.cat([tower(pixels) for tower in self.towers], dim=-1)

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Pooled vectors of all towers, in their order."""
        return torch.cat([tower.pooled(pixels) for tower in self.towers], dim=-1)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of all towers."""
        return tuple(block for tower in self.towers for block in tower.blocks())


def fused(parts: Mapping[str, VisionSpec], spec: VisionSpec, load: Load) -> nn.Module:
    """Build the parts; a folder as source has one subfolder a part, by the part's name."""
    return FusedVision([part.build(part, replace(load, source=_source(name, part, spec, load))) for name, part in parts.items()])


def _source(name: str, part: VisionSpec, spec: VisionSpec, load: Load) -> str | Path | None:
    if load.source is None:
        return None
    return part.source if load.source == spec.source else Path(load.source) / name


def fused_spec(parts: Mapping[str, VisionSpec], *, aliases: tuple[str, ...] = ()) -> VisionSpec:
    """The spec of several backbones on the channel axis.

    Args:
        parts: Names and specs, in channel order; the padding color is the first one's.
        aliases: Other names of the result.

    Raises:
        ConfigError: If tile sizes or patch counts differ.
    """
    specs = list(parts.values())
    if len(specs) < 2 or len({(spec.image_size, spec.num_patches) for spec in specs}) != 1:
        listed = ", ".join(f"{name} {spec.image_size} px, {spec.num_patches} patches" for name, spec in parts.items())
        raise ConfigError(f"A fused vision backbone needs two or more different parts of equal image size and patch count; got {listed or 'none'}.")
    first = specs[0]
    return VisionSpec(
        build=partial(fused, parts),
        source=" + ".join(spec.source for spec in specs),
        width=sum(spec.width for spec in specs),
        pooled_width=sum(spec.pooled_width or spec.width for spec in specs),
        image_size=first.image_size,
        num_patches=first.num_patches,
        num_parameters=sum(spec.num_parameters for spec in specs),
        mean=first.mean,
        std=first.std,
        resample=first.resample,
        license=" and ".join(dict.fromkeys(spec.license for spec in specs)),
        paper=", ".join(["arXiv:2402.07865", *dict.fromkeys(spec.paper for spec in specs)]),
        aliases=aliases,
        package=next((spec.package for spec in specs if spec.package), ""),
        parts=tuple(parts),
        lora_targets=_joined_targets(specs),
    )


def _joined_targets(specs: Sequence[VisionSpec]) -> tuple[str, ...] | str:
    """Every part's targets; `all-linear` if one of them wants that."""
    targets = [spec.lora_targets for spec in specs]
    return tuple(dict.fromkeys(name for names in targets for name in names)) if "all-linear" not in targets else "all-linear"


def fused_by_names(names: str) -> VisionSpec:
    """`fused:a+b`: any two or more backbones of equal image size and patch count."""
    return fused_spec({VISION.resolve(name): VISION[name] for name in names.split("+")})


OPEN_SPECS = {"fused:<a>+<b>": fused_by_names}

_DINO, _SIGLIP, _CLIP = dinov2_module.SPECS, siglip_module.SPECS, clip_module.SPECS
_CLIP_WITH_GELU = replace(_CLIP["clip-l14-336"], build=clip_module.clip_with_gelu)

SPECS = {
    "dinoclip-336": fused_spec({"dinov2-l14-reg-336": _DINO["dinov2-l14-reg-336"], "clip-l14-336": _CLIP["clip-l14-336"]}),
    # Prismatic's native dinoclip checkpoints were trained on CLIP features with the wrong activation, so its name stands for that.
    "dinoclip-336-gelu": fused_spec(
        {"dinov2-l14-reg-336": _DINO["dinov2-l14-reg-336"], "clip-l14-336": _CLIP_WITH_GELU}, aliases=("dinoclip-vit-l-336px",)
    ),
    "dinosiglip-224": fused_spec(
        {"dinov2-l14-reg-224": _DINO["dinov2-l14-reg-224"], "siglip-so400m-224": _SIGLIP["siglip-so400m-224"]},
        aliases=("dinosiglip-vit-so-224px",),
    ),
    "dinosiglip-384": fused_spec(
        {"dinov2-l14-reg-384": _DINO["dinov2-l14-reg-384"], "siglip-so400m-384": _SIGLIP["siglip-so400m-384"]},
        aliases=("dinosiglip-vit-so-384px",),
    ),
}

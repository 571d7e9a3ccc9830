"""Image encoders that put the vectors of several side by side, for heads on richer pictures; no text half exists.

A picture becomes pixels once, by the policy of the first encoder, whatever the others' own is; each normalizes the pixels itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.image import IMAGE, clip, dinov2, siglip
from vlm.backbones.image.base import ImageSpec, PooledImage
from vlm.backbones.loading import Load
from vlm.errors import ConfigError


class SideBySide(nn.Module):
    """Several encoders as one tower."""

    def __init__(self, encoders: Sequence[PooledImage]):
        """Join encoders of equal image size."""
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """The vectors of all, in their order."""
        return torch.cat([encoder(pixels) for encoder in self.encoders], dim=-1)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of all."""
        return tuple(block for encoder in self.encoders if isinstance(encoder, PooledImage) for block in encoder.blocks())


def fused(parts: Mapping[str, ImageSpec], spec: ImageSpec, load: Load) -> PooledImage:
    """Build the parts; a folder as source has one subfolder a part, by the part's name."""
    return PooledImage(spec, SideBySide([part.build(part, replace(load, source=_source(name, part, spec, load))) for name, part in parts.items()]))


def _source(name: str, part: ImageSpec, spec: ImageSpec, load: Load) -> str | Path | None:
    if load.source is None:
        return None
    return part.source if load.source == spec.source else Path(load.source) / name


def fused_spec(parts: Mapping[str, ImageSpec]) -> ImageSpec:
    """The spec of several encoders side by side.

    Args:
        parts: Names and specs, in the order of the vectors; pictures become pixels by the first one's policy.

    Raises:
        ConfigError: If there are fewer than two, or image sizes differ.
    """
    specs = list(parts.values())
    if len(specs) < 2 or len({spec.image_size for spec in specs}) != 1:
        listed = ", ".join(f"{name} {spec.image_size} px" for name, spec in parts.items())
        raise ConfigError(f"A fused image encoder needs two or more different parts of equal image size; got {listed or 'none'}.")
    first = specs[0]
    return ImageSpec(
        build=partial(fused, parts),
        source=" + ".join(str(spec.source) for spec in specs),
        width=sum(spec.width for spec in specs),
        image_policy=first.image_policy,
        mean=first.mean,
        std=first.std,
        num_parameters=sum(spec.num_parameters for spec in specs),
        pooling="; ".join(spec.pooling for spec in specs),
        architecture={name: {**spec.architecture, "mean": list(spec.mean), "std": list(spec.std)} for name, spec in parts.items()},
        license=" and ".join(dict.fromkeys(spec.license for spec in specs)),
        paper=", ".join(dict.fromkeys(spec.paper for spec in specs)),
        package=next((spec.package for spec in specs if spec.package), ""),
    )


def fused_by_names(names: str) -> ImageSpec:
    """`fused:a-image+b-image`: any two or more image encoders of equal image size."""
    return fused_spec({IMAGE.resolve(name): IMAGE[name] for name in names.split("+")})


OPEN_SPECS = {"fused:<a>+<b>": fused_by_names}

_OTHERS = clip.SPECS | siglip.SPECS

SPECS = {
    f"{name}-image": fused_spec({half: (dinov2.SPECS | _OTHERS)[half] for half in halves})
    for name, halves in {
        "dinoclip-336": ("dinov2-l14-reg-336-image", "clip-l14-336-image"),
        "dinosiglip-224": ("dinov2-l14-reg-224-image", "siglip-so400m-224-image"),
        "dinosiglip-384": ("dinov2-l14-reg-384-image", "siglip-so400m-384-image"),
    }.items()
}

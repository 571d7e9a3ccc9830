"""SigLIP image encoders (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) through transformers.

Of SigLIP 2, the checkpoints of fixed resolution, which share SigLIP's architecture. The MLPs use tanh GELU, as in the original big_vision code;
timm's copies (which Prismatic used) compute exact GELU: `timm:vit_so400m_patch14_siglip_384` gives those features to the last digit.
"""

from typing import Literal

from torch import nn

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.vision.base import CLIP_ATTENTION, TransformersVision, VisionSpec

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}
SO400M_16 = SO400M | {"patch_size": 16}


def siglip(spec: VisionSpec, load: Load, *, num_prefix_tokens: int = 0) -> nn.Module:
    """A SigLIP image tower; patches only, there is no class token. With `num_prefix_tokens` 1 the first patch is left out, as in Mantis."""
    model = load_transformers("SiglipVisionModel", "SiglipVisionConfig", spec, load)
    return TransformersVision(
        model,
        spec=spec,
        feature_layer=load.feature_layer,
        layers="encoder.layers",
        num_prefix_tokens=num_prefix_tokens,
        layer_arguments={"attention_mask": None},
    )


def _spec(
    size: dict[str, int],
    *,
    source: str,
    image_size: int,
    num_parameters: int,
    paper: str,
    resample: Literal["bicubic", "bilinear"],
    aliases: tuple[str, ...] = (),
) -> VisionSpec:
    return VisionSpec(
        build=siglip,
        source=source,
        architecture=size | {"image_size": image_size, "vision_use_head": True},
        width=size["hidden_size"],
        image_size=image_size,
        num_patches=(image_size // size["patch_size"]) ** 2,
        num_parameters=num_parameters,
        resample=resample,
        lora_targets=CLIP_ATTENTION,
        license="Apache-2.0",
        paper=paper,
        aliases=aliases,
    )


def _v1(size: dict[str, int], image_size: int, source: str, num_parameters: int, alias: str) -> VisionSpec:
    return _spec(
        size,
        source=f"google/{source}",
        image_size=image_size,
        num_parameters=num_parameters,
        paper="arXiv:2303.15343",
        resample="bicubic",
        aliases=(alias,),
    )


def _v2(size: dict[str, int], image_size: int, source: str, num_parameters: int) -> VisionSpec:
    return _spec(size, source=f"google/{source}", image_size=image_size, num_parameters=num_parameters, paper="arXiv:2502.14786", resample="bilinear")


SPECS = {
    "siglip-b16-224": _v1(BASE, 224, "siglip-base-patch16-224", 92_884_224, "siglip-vit-b16-224px"),
    "siglip-b16-256": _v1(BASE, 256, "siglip-base-patch16-256", 92_930_304, "siglip-vit-b16-256px"),
    "siglip-b16-384": _v1(BASE, 384, "siglip-base-patch16-384", 93_176_064, "siglip-vit-b16-384px"),
    "siglip-so400m-224": _v1(SO400M, 224, "siglip-so400m-patch14-224", 427_680_704, "siglip-vit-so400m"),
    "siglip-so400m-384": _v1(SO400M, 384, "siglip-so400m-patch14-384", 428_225_600, "siglip-vit-so400m-384px"),
    "siglip2-b16-224": _v2(BASE, 224, "siglip2-base-patch16-224", 92_884_224),
    "siglip2-b16-256": _v2(BASE, 256, "siglip2-base-patch16-256", 92_930_304),
    "siglip2-b16-384": _v2(BASE, 384, "siglip2-base-patch16-384", 93_176_064),
    "siglip2-so400m-224": _v2(SO400M, 224, "siglip2-so400m-patch14-224", 427_680_704),
    "siglip2-so400m-384": _v2(SO400M, 384, "siglip2-so400m-patch14-384", 428_225_600),
    "siglip2-so400m-p16-256": _v2(SO400M_16, 256, "siglip2-so400m-patch16-256", 427_888_064),
    "siglip2-so400m-p16-384": _v2(SO400M_16, 384, "siglip2-so400m-patch16-384", 428_256_704),
    "siglip2-so400m-p16-512": _v2(SO400M_16, 512, "siglip2-so400m-patch16-512", 428_772_800),
}

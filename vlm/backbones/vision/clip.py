"""CLIP image encoders (Radford et al. 2021, arXiv:2103.00020) through transformers, with the activation they were trained with: quick GELU, or LAION's exact GELU."""

from dataclasses import replace

from torch import nn

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.vision.base import CLIP_ATTENTION, OPENAI_MEAN, OPENAI_STD, TransformersVision, VisionSpec

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
BASE_32 = BASE | {"patch_size": 32}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}


def clip(spec: VisionSpec, load: Load, *, num_prefix_tokens: int = 1) -> TransformersVision:
    """A CLIP image tower; the class token comes before the patches, and is left out unless `num_prefix_tokens` is 0."""
    model = load_transformers("CLIPVisionModel", "CLIPVisionConfig", spec, load)
    return TransformersVision(
        model,
        spec=spec,
        feature_layer=load.feature_layer,
        layers="encoder.layers",
        pre_norm="pre_layrnorm",
        num_prefix_tokens=num_prefix_tokens,
        layer_arguments={"attention_mask": None},
    )


def clip_with_gelu(spec: VisionSpec, load: Load) -> TransformersVision:
    """CLIP's weights under exact GELU, which they were not trained with: what Prismatic computed inside its dinoclip backbone."""
    tower = clip(spec, load)
    for layer in tower.model.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()
    return tower


def _spec(
    size: dict[str, int], *, source: str, image_size: int, num_parameters: int, hidden_act: str = "quick_gelu", aliases: tuple[str, ...] = ()
) -> VisionSpec:
    return VisionSpec(
        build=clip,
        source=source,
        architecture=size | {"image_size": image_size, "hidden_act": hidden_act},
        width=size["hidden_size"],
        image_size=image_size,
        num_patches=(image_size // size["patch_size"]) ** 2,
        num_parameters=num_parameters,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        lora_targets=CLIP_ATTENTION,
        license="MIT",
        paper="arXiv:2103.00020",
        aliases=aliases,
    )


SPECS = {
    "clip-b32-224": _spec(BASE_32, source="openai/clip-vit-base-patch32", image_size=224, num_parameters=87_456_000),
    # LAION's training of the same architecture, with exact GELU (Cherti et al. 2022)
    "clip-b32-224-laion2b": replace(
        _spec(BASE_32, source="laion/CLIP-ViT-B-32-laion2B-s34B-b79K", image_size=224, num_parameters=87_456_000, hidden_act="gelu"),
        paper="arXiv:2212.07143",
    ),
    "clip-b16-224": _spec(BASE, source="openai/clip-vit-base-patch16", image_size=224, num_parameters=85_799_424, aliases=("clip-vit-b",)),
    "clip-l14-224": _spec(LARGE, source="openai/clip-vit-large-patch14", image_size=224, num_parameters=303_179_776, aliases=("clip-vit-l",)),
    "clip-l14-336": _spec(
        LARGE, source="openai/clip-vit-large-patch14-336", image_size=336, num_parameters=303_507_456, aliases=("clip-vit-l-336px",)
    ),
}

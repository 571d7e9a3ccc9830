"""DINOv2 with registers (Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2023, arXiv:2309.16588) through transformers.

The weights were trained at 518 px; at other sizes the position embeddings are interpolated, and a side that the patch does not divide is cut off
by the patch convolution (384 px: 27 patches of 14).
"""

from torch import nn

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.vision.base import IMAGENET_MEAN, IMAGENET_STD, VIT_ATTENTION, TransformersVision, VisionSpec

LARGE = {
    "hidden_size": 1024,
    "mlp_ratio": 4,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 518,
    "num_register_tokens": 4,
}


def dinov2(spec: VisionSpec, load: Load) -> nn.Module:
    """A DINOv2 tower; class token and registers come before the patches."""
    model = load_transformers("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", spec, load)
    num_prefix_tokens = 1 + spec.architecture["num_register_tokens"]
    return TransformersVision(model, spec=spec, feature_layer=load.feature_layer, layers="encoder.layer", num_prefix_tokens=num_prefix_tokens)


def _spec(image_size: int, *, aliases: tuple[str, ...] = ()) -> VisionSpec:
    return VisionSpec(
        build=dinov2,
        source="facebook/dinov2-with-registers-large",
        architecture=LARGE,
        width=1024,
        image_size=image_size,
        num_patches=(image_size // 14) ** 2,
        num_parameters=304_372_736,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        lora_targets=VIT_ATTENTION,
        license="Apache-2.0",
        paper="arXiv:2304.07193, arXiv:2309.16588",
        aliases=aliases,
    )


SPECS = {
    "dinov2-l14-reg-224": _spec(224, aliases=("dinov2-vit-l",)),
    "dinov2-l14-reg-336": _spec(336),
    "dinov2-l14-reg-384": _spec(384),
    "dinov2-l14-reg-518": _spec(518),
}

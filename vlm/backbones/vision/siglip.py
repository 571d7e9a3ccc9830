"""SigLIP image encoders (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) through transformers."""

from torch import nn

from vlm.backbones.loading import Load
from vlm.backbones.vision.base import TransformersVision, VisionSpec, load_transformers

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}


def siglip(spec: VisionSpec, load: Load) -> nn.Module:
    """A SigLIP image tower; patches only, there is no class token."""
    model = load_transformers("SiglipVisionModel", "SiglipVisionConfig", spec, load)
    layer = spec.feature_layer if load.feature_layer is None else load.feature_layer
    return TransformersVision(model, spec=spec, feature_layer=layer, layers=model.encoder.layers, layer_arguments={"attention_mask": None})


def _spec(size: dict[str, int], *, source: str, image_size: int, num_parameters: int, paper: str, aliases: tuple[str, ...] = ()) -> VisionSpec:
    return VisionSpec(
        build=siglip,
        source=source,
        architecture=size | {"image_size": image_size},
        width=size["hidden_size"],
        image_size=image_size,
        num_patches=(image_size // size["patch_size"]) ** 2,
        num_parameters=num_parameters,
        license="Apache-2.0",
        paper=paper,
        aliases=aliases,
    )


V1, V2 = "arXiv:2303.15343", "arXiv:2502.14786"

SPECS = {
    "siglip-so400m-384": _spec(
        SO400M,
        source="google/siglip-so400m-patch14-384",
        image_size=384,
        num_parameters=428_225_600,
        paper=V1,
        aliases=("siglip-vit-so400m-384px",),
    ),
}

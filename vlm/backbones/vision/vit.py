"""Vision transformers trained on ImageNet labels (Dosovitskiy et al. 2020, arXiv:2010.11929) through transformers.

Prismatic's `in1k-vit-l` is another training of the same architecture (AugReg, timm); that name stands in `timm.py`.
"""

from torch import nn

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.vision.base import VIT_ATTENTION, TransformersVision, VisionSpec

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "image_size": 224}


def vit(spec: VisionSpec, load: Load) -> nn.Module:
    """An ImageNet ViT; the class token comes before the patches. Published classifiers have no pooler, so the class token is pooled."""
    model = load_transformers("ViTModel", "ViTConfig", spec, load, add_pooling_layer=False)
    return TransformersVision(model, spec=spec, feature_layer=load.feature_layer, layers="layers", num_prefix_tokens=1, pools_class_token=True)


SPECS = {
    "in1k-vit-l16-224": VisionSpec(
        build=vit,
        source="google/vit-large-patch16-224",
        architecture=LARGE,
        width=1024,
        image_size=224,
        num_patches=196,
        num_parameters=303_301_632,
        resample="bilinear",
        lora_targets=VIT_ATTENTION,
        license="Apache-2.0",
        paper="arXiv:2010.11929",
    ),
}

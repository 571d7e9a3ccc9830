"""LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744): CLIP-L/14-336, a two-layer MLP, Vicuna 1.5."""

from vlm.conf.recipes import llava_recipe
from vlm.conf.schema import VisionLanguageConfig


def _model(size: str) -> VisionLanguageConfig:
    return VisionLanguageConfig(name=f"llava-1.5-{size}", vision="clip-l14-336", connector="mlp2x-gelu", language=f"vicuna-1.5-{size}", resize="pad")


SPECS = llava_recipe(_model("7b")) | llava_recipe(_model("13b"))

"""Qwen3-1.7B (Yang et al. 2025, arXiv:2505.09388) with SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786), by LLaVA's recipe: parts of 2025."""

from vlm.conf.recipes import llava_recipe
from vlm.conf.schema import VisionLanguageConfig

SPECS = llava_recipe(VisionLanguageConfig(name="qwen3-siglip2", vision="siglip2-so400m-384", connector="mlp2x-gelu", language="qwen3-1.7b"))

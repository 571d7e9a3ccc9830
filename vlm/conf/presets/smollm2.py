"""SmolLM2-1.7B (Ben Allal et al. 2025, arXiv:2502.02737) with SigLIP (Zhai et al. 2023, arXiv:2303.15343), by LLaVA's recipe: for one GPU."""

from vlm.conf.recipes import llava_recipe
from vlm.conf.schema import VisionLanguageConfig

SPECS = llava_recipe(VisionLanguageConfig(name="smollm2-siglip", vision="siglip-b16-384", connector="mlp2x-gelu", language="smollm2-1.7b-instruct"))

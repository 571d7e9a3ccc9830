"""SmolLM2 with SigLIP: small enough for one consumer GPU."""

from vlm.conf.recipes import llava_recipe
from vlm.conf.schema import VisionLanguageConfig

SPECS = llava_recipe(VisionLanguageConfig(name="smollm2-siglip", vision="siglip-b16-384", connector="mlp2x-gelu", language="smollm2-1.7b-instruct"))

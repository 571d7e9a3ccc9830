"""Phi-2 with SigLIP: the composition of the Phi-2 fork of Prismatic, with LLaVA's recipe and LoRA."""

from vlm.conf.recipes import llava_recipe
from vlm.conf.schema import LoRAConfig, VisionLanguageConfig

SPECS = llava_recipe(
    VisionLanguageConfig(name="phi2-siglip", vision="siglip-so400m-384", connector="mlp2x-gelu", language="phi-2"),
    lora=LoRAConfig(rank=128, alpha=256.0, dropout=0.05),  # LLaVA 1.5's LoRA settings (scripts/v1_5/finetune_lora.sh)
)

"""Phi-3-mini with DINOv2 and SigLIP side by side, and LoRA: the Phi-3 fork of Prismatic.

Source: NMS05/DinoV2-SigLIP-Phi3-LoRA-VLM, prismatic/conf/models.py and models/backbones/llm/phi3.py. Its limit of 4,096 tokens, which a missing type
annotation turns into 2,048 there, holds here. The prompt is Phi-3's own; the fork's has `<|Assistant|>`, which is no token of Phi-3.
"""

from dataclasses import replace

from vlm.conf.recipes import PRISMATIC_ALIGN, PRISMATIC_FINETUNE, prismatic_recipe
from vlm.conf.schema import LoRAConfig, VisionLanguageConfig

SPECS = prismatic_recipe(
    VisionLanguageConfig(name="phi3-dinosiglip-lora", vision="dinosiglip-384", connector="fused-mlp", language="phi-3-mini"),
    lora=LoRAConfig(rank=128, alpha=256.0, dropout=0.05),  # on all linear layers of a block, Phi-3's own list
    align=replace(PRISMATIC_ALIGN, global_batch_size=64, per_device_batch_size=8),
    finetune=replace(PRISMATIC_FINETUNE, dataset="llava-lrv", global_batch_size=32, per_device_batch_size=4),
)
ALIASES = {
    "dino-siglip-phi3-lora-model/align": "phi3-dinosiglip-lora/align",
    "dino-siglip-phi3-lora-model/finetune": "phi3-dinosiglip-lora/finetune",
}

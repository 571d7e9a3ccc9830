"""Phi-2 with SigLIP and LoRA: by LLaVA's recipe, and as in the Phi-2 fork of Prismatic."""

from dataclasses import replace

from vlm.conf.recipes import PRISMATIC_ALIGN, PRISMATIC_FINETUNE, llava_recipe, prismatic_recipe
from vlm.conf.schema import LoRAConfig, VisionLanguageConfig

# SigLIP as in Prism-SigLIP (Karamcheti et al. 2024, arXiv:2402.07865, section 5).
SO400M = llava_recipe(
    VisionLanguageConfig(name="phi2-siglip", vision="siglip-so400m-384", connector="mlp2x-gelu", language="phi-2"),
    lora=LoRAConfig(rank=128, alpha=256.0, dropout=0.05),  # LLaVA 1.5's LoRA settings (scripts/v1_5/finetune_lora.sh)
)

# nms05/SigLIP_Phi2_LoRA_VLM: its batch sizes, rates, data, and prompt (`In: ...\nOut: ...`). Unlike there, a conversation begins with the start token,
# the picture stands where the text says and not behind its first token, and end tokens are not hidden from the attention as if they were padding.
B16 = prismatic_recipe(
    VisionLanguageConfig(name="phi2-siglip-b16", vision="siglip-b16-384", connector="mlp2x-gelu", language="phi-2", template="pure"),
    lora=LoRAConfig(rank=8, alpha=16.0, dropout=0.05),  # on q_proj and v_proj, Phi-2's own list
    align=replace(PRISMATIC_ALIGN, global_batch_size=64, per_device_batch_size=8),
    finetune=replace(PRISMATIC_FINETUNE, dataset="llava-lvis4v-lrv", global_batch_size=16, per_device_batch_size=2),
)

SPECS = SO400M | B16
ALIASES = {"my_phi2_siglip_model/align": "phi2-siglip-b16/align", "my_phi2_siglip_model/finetune": "phi2-siglip-b16/finetune"}

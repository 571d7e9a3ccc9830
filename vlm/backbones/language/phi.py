"""Phi (Li et al. 2023, arXiv:2309.05463), Phi-2 and Phi-3 (Abdin et al. 2024, arXiv:2404.14219) of Microsoft."""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import PHI_2, PHI_3, PURE
from vlm.messages import ChatTemplate

# As in the published LoRA checkpoint on Phi-2 (nms05/SigLIP_Phi2_LoRA_VLM), so that it fits; its authors chose Hu et al.'s layers.
# The whole block is q_proj, k_proj, v_proj, dense, fc1, fc2.
PHI_TARGETS = ("q_proj", "v_proj")
PHI_3_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # all of a block, as in nms05/Dinov2-SigLIP-Phi3-LoRA


def _phi(*, width: int, layers: int, rotary: float) -> dict[str, Any]:
    return {
        "model_type": "phi",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": rotary},
        "vocab_size": 51_200,
        "max_position_embeddings": 2048,
    }


PHI_3_MINI = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "sliding_window": 2047,
    "vocab_size": 32_064,
    "max_position_embeddings": 4096,
}


def _spec(
    source: str,
    architecture: dict[str, Any],
    *,
    template: ChatTemplate,
    num_parameters: int,
    paper: str,
    lora_targets: tuple[str, ...],
    aliases: tuple[str, ...] = (),
) -> LanguageSpec:
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=source,
        template=template,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=num_parameters,
        license="MIT",
        paper=paper,
        lora_targets=lora_targets,
        aliases=aliases,
    )


SPECS = {
    "phi-1.5": _spec(
        "microsoft/phi-1_5",
        _phi(width=2048, layers=24, rotary=0.5),
        template=PURE,
        num_parameters=1_418_270_720,
        paper="arXiv:2309.05463",
        lora_targets=PHI_TARGETS,
    ),
    "phi-2": _spec(
        "microsoft/phi-2",
        _phi(width=2560, layers=32, rotary=0.4),
        template=PHI_2,
        num_parameters=2_779_683_840,
        paper="microsoft.com/en-us/research/blog/phi-2-the-surprising-power-of-small-language-models",
        lora_targets=PHI_TARGETS,
        aliases=("phi-2-3b", "phi2_base"),
    ),
    "phi-3-mini": _spec(
        "microsoft/Phi-3-mini-4k-instruct",
        PHI_3_MINI,
        template=PHI_3,
        num_parameters=3_821_079_552,
        paper="arXiv:2404.14219",
        lora_targets=PHI_3_TARGETS,
        aliases=("phi3_base",),
    ),
}

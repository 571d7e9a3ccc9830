"""Llama 2 (Touvron et al. 2023, arXiv:2307.09288) and Llama 3 to 3.2 (Grattafiori et al. 2024, arXiv:2407.21783) of Meta."""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import LLAMA_2_CHAT, LLAMA_3, LLAMA_3_1, PURE
from vlm.messages import ChatTemplate

# All linear layers of a block: what LLaVA 1.5's and QLoRA's (Dettmers et al. 2023, section 4) adapters train.
BLOCK_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llama_2(width: int, *, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """Config values of a Llama 2, or of a model that was trained from one."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


LLAMA_2_7B = llama_2(4096, hidden=11_008, layers=32, heads=32)
LLAMA_2_13B = llama_2(5120, hidden=13_824, layers=40, heads=40)


def _llama_3(width: int, *, hidden: int, layers: int, heads: int, tied: bool = False, scale: float | None = None) -> dict[str, Any]:
    """Config values of a Llama 3; `scale` stretches the context of 8,192 as from version 3.1 on."""
    rope: dict[str, Any] = {"rope_theta": 500_000.0, "rope_type": "default"}
    if scale is not None:
        stretch = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        rope |= {"rope_type": "llama3", "factor": scale} | stretch
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192 if scale is None else 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
    }


LLAMA_3_8B = {"width": 4096, "hidden": 14_336, "layers": 32, "heads": 32}


def _spec(
    source: str, architecture: dict[str, Any], *, template: ChatTemplate, num_parameters: int, license: str, aliases: tuple[str, ...] = ()
) -> LanguageSpec:
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=f"meta-llama/{source}",
        template=template,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=num_parameters,
        license=license,
        paper="arXiv:2307.09288" if "Llama-2" in source else "arXiv:2407.21783",
        lora_targets=BLOCK_TARGETS,
        aliases=aliases,
    )


NUM_7B, NUM_13B, NUM_8B = 6_738_415_616, 13_015_864_320, 8_030_261_248
L2, L3, L31, L32 = (f"Llama {version} Community License" for version in ("2", "3", "3.1", "3.2"))

SPECS = {
    "llama-2-7b": _spec("Llama-2-7b-hf", LLAMA_2_7B, template=PURE, num_parameters=NUM_7B, license=L2, aliases=("llama2-7b-pure",)),
    "llama-2-13b": _spec("Llama-2-13b-hf", LLAMA_2_13B, template=PURE, num_parameters=NUM_13B, license=L2, aliases=("llama2-13b-pure",)),
    "llama-2-7b-chat": _spec("Llama-2-7b-chat-hf", LLAMA_2_7B, template=LLAMA_2_CHAT, num_parameters=NUM_7B, license=L2, aliases=("llama2-7b-chat",)),
    "llama-2-13b-chat": _spec(
        "Llama-2-13b-chat-hf", LLAMA_2_13B, template=LLAMA_2_CHAT, num_parameters=NUM_13B, license=L2, aliases=("llama2-13b-chat",)
    ),
    "llama-3-8b-instruct": _spec("Meta-Llama-3-8B-Instruct", _llama_3(**LLAMA_3_8B), template=LLAMA_3, num_parameters=NUM_8B, license=L3),
    "llama-3.1-8b-instruct": _spec(
        "Llama-3.1-8B-Instruct", _llama_3(**LLAMA_3_8B, scale=8.0), template=LLAMA_3_1, num_parameters=NUM_8B, license=L31
    ),
    "llama-3.2-1b-instruct": _spec(
        "Llama-3.2-1B-Instruct",
        _llama_3(2048, hidden=8192, layers=16, heads=32, tied=True, scale=32.0),
        template=LLAMA_3_1,
        num_parameters=1_235_814_400,
        license=L32,
    ),
    "llama-3.2-3b-instruct": _spec(
        "Llama-3.2-3B-Instruct",
        _llama_3(3072, hidden=8192, layers=28, heads=24, tied=True, scale=32.0),
        template=LLAMA_3_1,
        num_parameters=3_212_749_824,
        license=L32,
    ),
}

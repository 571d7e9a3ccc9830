"""Qwen2.5 (Qwen Team 2024, arXiv:2412.15115) and Qwen3 (Yang et al. 2025, arXiv:2505.09388) of Alibaba."""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import QWEN_2_5, QWEN_3
from vlm.backbones.language.llama import BLOCK_TARGETS

ROPE = {"rope_theta": 1_000_000.0, "rope_type": "default"}


def _qwen_2_5(width: int, *, hidden: int, layers: int, heads: int, kv_heads: int, tied: bool = True, vocab_size: int = 151_936) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": ROPE,
        "tie_word_embeddings": tied,
    }


def _qwen_3(width: int, *, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": ROPE,
        "tie_word_embeddings": True,
    }


def _spec(source: str, architecture: dict[str, Any], *, num_parameters: int, license: str = "Apache-2.0") -> LanguageSpec:
    third = architecture["model_type"] == "qwen3"
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=f"Qwen/{source}",
        template=QWEN_3 if third else QWEN_2_5,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=num_parameters,
        license=license,
        paper="arXiv:2505.09388" if third else "arXiv:2412.15115",
        lora_targets=BLOCK_TARGETS,
    )


SPECS = {
    "qwen2.5-0.5b-instruct": _spec("Qwen2.5-0.5B-Instruct", _qwen_2_5(896, hidden=4864, layers=24, heads=14, kv_heads=2), num_parameters=494_032_768),
    "qwen2.5-1.5b-instruct": _spec(
        "Qwen2.5-1.5B-Instruct", _qwen_2_5(1536, hidden=8960, layers=28, heads=12, kv_heads=2), num_parameters=1_543_714_304
    ),
    "qwen2.5-3b-instruct": _spec(
        "Qwen2.5-3B-Instruct",
        _qwen_2_5(2048, hidden=11_008, layers=36, heads=16, kv_heads=2),
        num_parameters=3_085_938_688,
        license="Qwen Research License (non-commercial)",
    ),
    "qwen2.5-7b-instruct": _spec(
        "Qwen2.5-7B-Instruct",
        _qwen_2_5(3584, hidden=18_944, layers=28, heads=28, kv_heads=4, tied=False, vocab_size=152_064),
        num_parameters=7_615_616_512,
    ),
    "qwen3-0.6b": _spec("Qwen3-0.6B", _qwen_3(1024, hidden=3072, layers=28, heads=16), num_parameters=596_049_920),
    "qwen3-1.7b": _spec("Qwen3-1.7B", _qwen_3(2048, hidden=6144, layers=28, heads=16), num_parameters=1_720_574_976),
    "qwen3-4b": _spec("Qwen3-4B", _qwen_3(2560, hidden=9728, layers=36, heads=32), num_parameters=4_022_468_096),
}

"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): grouped queries and, in v0.1, a sliding window of 4,096 tokens."""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import MISTRAL_INSTRUCT, PURE
from vlm.backbones.language.llama import BLOCK_TARGETS
from vlm.messages import ChatTemplate


def _architecture(*, window: int | None, theta: float) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": window,
        "vocab_size": 32_000,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
    }


V01, V02 = _architecture(window=4096, theta=10_000.0), _architecture(window=None, theta=1_000_000.0)


def _spec(source: str, architecture: dict[str, Any], *, template: ChatTemplate, aliases: tuple[str, ...] = ()) -> LanguageSpec:
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=f"mistralai/{source}",
        template=template,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=7_241_732_096,
        license="Apache-2.0",
        paper="arXiv:2310.06825",
        lora_targets=BLOCK_TARGETS,
        aliases=aliases,
    )


SPECS = {
    "mistral-v0.1-7b": _spec("Mistral-7B-v0.1", V01, template=PURE, aliases=("mistral-v0.1-7b-pure",)),
    "mistral-instruct-v0.1-7b": _spec("Mistral-7B-Instruct-v0.1", V01, template=MISTRAL_INSTRUCT, aliases=("mistral-v0.1-7b-instruct",)),
    "mistral-instruct-v0.2-7b": _spec("Mistral-7B-Instruct-v0.2", V02, template=MISTRAL_INSTRUCT),
}

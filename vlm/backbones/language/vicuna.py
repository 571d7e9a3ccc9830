"""Vicuna 1.5 (Chiang et al. 2023, Zheng et al. 2023, arXiv:2306.05685): Llama 2 tuned on conversations; the language model of LLaVA 1.5."""

from typing import Any

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import VICUNA_V1
from vlm.backbones.language.llama import BLOCK_TARGETS, LLAMA_2_7B, LLAMA_2_13B, NUM_7B, NUM_13B


def _spec(source: str, architecture: dict[str, Any], *, num_parameters: int, aliases: tuple[str, ...]) -> LanguageSpec:
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=source,
        template=VICUNA_V1,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=num_parameters,
        license="Llama 2 Community License",
        paper="arXiv:2306.05685",
        lora_targets=BLOCK_TARGETS,
        aliases=aliases,
    )


SPECS = {
    "vicuna-1.5-7b": _spec("lmsys/vicuna-7b-v1.5", LLAMA_2_7B, num_parameters=NUM_7B, aliases=("vicuna-v15-7b",)),
    "vicuna-1.5-13b": _spec("lmsys/vicuna-13b-v1.5", LLAMA_2_13B, num_parameters=NUM_13B, aliases=("vicuna-v15-13b",)),
}

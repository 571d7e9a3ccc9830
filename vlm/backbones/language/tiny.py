"""Models of a few thousand random parameters, one of each architecture, with a tokenizer made in code: for tests and for trying commands offline.

The weights depend on the name alone and leave the global random state as it was. `Load.source` may be a folder that such a model was saved to.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import MISTRAL_INSTRUCT, PHI_2, PHI_3, QWEN_2_5, QWEN_3, VICUNA_V1
from vlm.backbones.loading import Load
from vlm.backbones.tiny_tokenizer import byte_level_bpe
from vlm.messages import ChatTemplate

WIDTH, VOCAB_SIZE, MAX_LENGTH = 32, 384, 512
SPECIAL_TOKENS = (
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>"),
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
)


def _tokenizer_json() -> str:
    return byte_level_bpe(SPECIAL_TOKENS, vocab_size=VOCAB_SIZE)


def tiny_tokenizer(spec: LanguageSpec, source: str | Path | None, *, eos: str, bos: str | None = None) -> Any:
    """The tokenizer made in code, or a folder's; `bos` goes before every text, as the Llama family's tokenizers do it."""
    if source is not None:
        return auto_tokenizer(spec, source)
    import transformers
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(_tokenizer_json())
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, model_max_length=MAX_LENGTH)


def tiny_model(spec: LanguageSpec, load: Load, *, name: str) -> nn.Module:
    """Random weights that the name seeds, or a folder's weights."""
    if load.source is not None:
        return causal_lm(spec, load)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        return causal_lm(spec, load)


def _spec(
    name: str,
    *,
    template: ChatTemplate,
    eos: str,
    num_parameters: int,
    bos: str | None = None,
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj"),
    **sizes: Any,
) -> LanguageSpec:
    architecture = {
        "model_type": name.removeprefix("tiny-"),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.2,  # wide, so that attention is far from uniform and mistakes in it are seen
    }
    return LanguageSpec(
        build=partial(tiny_model, name=name),
        tokenizer=partial(tiny_tokenizer, eos=eos, bos=bos),
        source=None,
        template=template,
        architecture=architecture | sizes,
        width=WIDTH,
        vocab_size=VOCAB_SIZE,
        max_length=MAX_LENGTH,
        num_parameters=num_parameters,
        license="none needed: random weights",
        paper="",
        lora_targets=lora_targets,
    )


SPECS = {
    "tiny-llama": _spec("tiny-llama", template=VICUNA_V1, bos="<s>", eos="</s>", num_parameters=43_168),
    "tiny-mistral": _spec("tiny-mistral", template=MISTRAL_INSTRUCT, bos="<s>", eos="</s>", num_parameters=43_168, sliding_window=6),
    "tiny-phi": _spec(
        "tiny-phi",
        template=PHI_2,
        eos="<|endoftext|>",
        num_parameters=39_872,
        rope_parameters={"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": 0.5},
    ),
    "tiny-phi3": _spec(
        "tiny-phi3",
        template=PHI_3,
        eos="<|endoftext|>",
        num_parameters=43_168,
        lora_targets=("qkv_proj", "o_proj"),
        sliding_window=64,
        eos_token_id=2,  # the family's defaults lie outside of this small vocabulary
        pad_token_id=2,
    ),
    "tiny-qwen2": _spec("tiny-qwen2", template=QWEN_2_5, eos="<|im_end|>", num_parameters=31_008, tie_word_embeddings=True),
    "tiny-qwen3": _spec("tiny-qwen3", template=QWEN_3, eos="<|im_end|>", num_parameters=37_088, tie_word_embeddings=True, head_dim=16),
}

"""SigLIP text encoders (Zhai et al. 2023, arXiv:2303.15343) through transformers: bidirectional, pooled at the last position, with a linear head.

The towers were trained on texts padded to a fixed length without a mask, so the padding is part of the input. That length is 64 tokens, but 16 for
so400m-224 (big_vision's `SEQLEN`, open_clip's `context_length`, and the position table of the published weights).
"""

from torch import nn

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.text.base import TextSpec, TransformersText, auto_tokenizer

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def siglip(spec: TextSpec, load: Load) -> nn.Module:
    """A SigLIP text tower with its head."""
    model = load_transformers(
        "SiglipTextModel", "SiglipTextConfig", spec, load, random_config={"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    )
    return TransformersText(model, output="pooler_output", layers="encoder.layers")


def _spec(size: dict[str, int], *, source: str, num_parameters: int, max_length: int = 64) -> TextSpec:
    return TextSpec(
        build=siglip,
        tokenizer=auto_tokenizer,
        source=f"google/{source}",
        architecture=size | {"vocab_size": 32_000, "max_position_embeddings": max_length, "projection_size": size["hidden_size"]},
        width=size["hidden_size"],
        max_length=max_length,
        num_parameters=num_parameters,
        license="Apache-2.0",
        paper="arXiv:2303.15343",
        packages=("sentencepiece", "protobuf"),
    )


SPECS = {
    "siglip-b16-224-text": _spec(BASE, source="siglip-base-patch16-224", num_parameters=110_271_744),
    "siglip-b16-256-text": _spec(BASE, source="siglip-base-patch16-256", num_parameters=110_271_744),
    "siglip-b16-384-text": _spec(BASE, source="siglip-base-patch16-384", num_parameters=110_271_744),
    "siglip-so400m-224-text": _spec(SO400M, source="siglip-so400m-patch14-224", num_parameters=449_679_600, max_length=16),
    "siglip-so400m-384-text": _spec(SO400M, source="siglip-so400m-patch14-384", num_parameters=449_734_896),
}

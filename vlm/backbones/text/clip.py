"""CLIP text encoders (Radford et al. 2021, arXiv:2103.00020) through transformers: causal, pooled at the end token, projected into the joint space."""

from typing import Any

from vlm.backbones.loading import Load, load_transformers
from vlm.backbones.text.base import TextSpec, TransformersText, auto_tokenizer

MAX_LENGTH = 77  # section 2.4 says 76; the released models have a 77th position for the end token
BASE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8, "projection_dim": 512}
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
TOKENS = {"vocab_size": 49_408, "max_position_embeddings": MAX_LENGTH}
OLD_END_TOKEN_ID = 2  # in the configs published before transformers 4.31, where it means: pool at the highest id


def clip(spec: TextSpec, load: Load) -> TransformersText:
    """A CLIP text tower with its projection."""
    model: Any = load_transformers("CLIPTextModelWithProjection", "CLIPTextConfig", spec, load)
    end = model.config.eos_token_id
    end = model.config.vocab_size - 1 if end == OLD_END_TOKEN_ID else end
    return TransformersText(model, output="text_embeds", layers="text_model.encoder.layers", end_token_id=end)


def _spec(size: dict[str, int], *, source: str, num_parameters: int, hidden_act: str = "quick_gelu", paper: str = "arXiv:2103.00020") -> TextSpec:
    return TextSpec(
        build=clip,
        tokenizer=auto_tokenizer,
        source=source,
        architecture=size | TOKENS | {"hidden_act": hidden_act},
        width=size["projection_dim"],
        max_length=MAX_LENGTH,
        num_parameters=num_parameters,
        license="MIT",
        paper=paper,
    )


SPECS = {
    "clip-b16-224-text": _spec(BASE, source="openai/clip-vit-base-patch16", num_parameters=63_428_096),
    "clip-b32-224-text": _spec(BASE, source="openai/clip-vit-base-patch32", num_parameters=63_428_096),
    # LAION's training of the same architecture, with exact GELU (Cherti et al. 2022)
    "clip-b32-224-laion2b-text": _spec(
        BASE, source="laion/CLIP-ViT-B-32-laion2B-s34B-b79K", num_parameters=63_428_096, hidden_act="gelu", paper="arXiv:2212.07143"
    ),
    "clip-l14-224-text": _spec(LARGE, source="openai/clip-vit-large-patch14", num_parameters=123_650_304),
    "clip-l14-336-text": _spec(LARGE, source="openai/clip-vit-large-patch14-336", num_parameters=123_650_304),
}

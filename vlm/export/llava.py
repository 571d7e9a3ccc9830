"""A composition as `LlavaForConditionalGeneration` of transformers: config and weights, in the spelling of llava-hf's repositories on the hub.

That spelling (`vision_tower.vision_model.*`, `language_model.model.*`, `multi_modal_projector.linear_1`) loads in transformers 4 and 5 and in vLLM.
Writes no file; says what the class cannot express.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm.backbones.vision.base import TransformersVision
from vlm.errors import ConfigError
from vlm.export.chat_jinja import jinja_losses
from vlm.export.folder import plain_config
from vlm.export.two_layers import NO_ACTIVATION, TwoLayers, as_two_layers
from vlm.models.vision_language import VisionLanguageModel

ROWS_MULTIPLE = 64  # llava-hf's: the embedding table grows to a multiple of it
SPOKEN_TO = {"clip_vision_model": "vision_model.", "siglip_vision_model": "vision_model."}  # a level of names that transformers 4 and vLLM have
VLLM_TOWERS = tuple(SPOKEN_TO)
REMEDY = "`--with-code` writes a folder that computes exactly what the model does, for transformers with trust_remote_code"


@dataclass(frozen=True)
class Llava:
    """A model in LLaVA's words.

    Attributes:
        config: The config of the whole model.
        weights: Tensors by their names in the file, in fp32.
        tokens_per_image: What one picture takes of the context.
        drops_first: True if the first token of the tower is left out: CLIP's class token.
        extra_tokens: Tokens of the tower beside its patches.
        patch_size: Side of a patch, in pixels.
        new_rows: Ids of rows of the embedding table that no trained token has; the image token may be among them.
        losses: What the class cannot express and the export therefore leaves out.
        notes: What the user should know.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokens_per_image: int
    drops_first: bool
    extra_tokens: int
    patch_size: int
    new_rows: tuple[int, ...]
    losses: tuple[str, ...]
    notes: tuple[str, ...]


def as_llava(model: VisionLanguageModel) -> Llava:
    """The model in LLaVA's words; its adapters must be folded in.

    Raises:
        ConfigError: If the class cannot express the composition, with every reason and the remedy.
    """
    reasons, layers = list(_reasons(model.vision)), None
    try:
        layers = as_two_layers(model.connector, model.vision.width, width=model.language.width)
    except ConfigError as error:
        reasons.append(str(error))
    if reasons or layers is None:
        raise ConfigError(f"LlavaForConditionalGeneration cannot express this model: {'; '.join(reasons)}. {REMEDY[0].upper()}{REMEDY[1:]}.")
    language, tower = model.language.model, model.vision.model.config
    rows = _rows(model)
    before = language.get_input_embeddings().weight.shape[0]
    return Llava(
        config=_config(model, layers, rows),
        weights=_weights(model, layers, rows),
        tokens_per_image=model.tokens_per_tile,
        drops_first=bool(model.vision.num_prefix_tokens),
        extra_tokens=model.tokens_per_tile + model.vision.num_prefix_tokens - (tower.image_size // tower.patch_size) ** 2,
        patch_size=tower.patch_size,
        new_rows=tuple(range(before, rows)),
        losses=(*_losses(language), *jinja_losses(model.template)),
        notes=tuple(_notes(tower.model_type, layers)),
    )


def _reasons(vision: Any) -> list[str]:
    """Why the vision backbone is none of LLaVA's."""
    if not isinstance(vision, TransformersVision):
        return [f"its vision backbone is of the class {type(vision).__name__}, and LLaVA has one vision transformer of transformers"]
    if vision.num_prefix_tokens > 1:
        return [f"its vision backbone has {vision.num_prefix_tokens} tokens before the patches, and LLaVA leaves out one at most"]
    return []


def _losses(language: Any) -> list[str]:
    bias = getattr(language.get_output_embeddings(), "bias", None)
    if bias is None or not bias.any():
        return []
    return [f"the language model's head has a bias (largest value {float(bias.abs().max()):.3g}), and LLaVA's has none, so every logit lacks it"]


def _notes(tower: str, layers: TwoLayers) -> list[str]:
    notes = []
    if tower not in VLLM_TOWERS:
        notes.append(f"vLLM does not read this export: its LLaVA takes CLIP and SigLIP, not {tower}")
    if layers.activation == NO_ACTIVATION:
        notes.append(
            "vLLM does not read this export: its LLaVA has no projector without activation, and the language model is too narrow for a detour"
        )
    return notes


def _rows(model: VisionLanguageModel) -> int:
    """Rows of the embedding table, which must have one for the image token although nothing reads it."""
    rows = model.language.model.get_input_embeddings().weight.shape[0]
    return rows if model.language.image_token_id < rows else -(-(model.language.image_token_id + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE


def _config(model: VisionLanguageModel, layers: TwoLayers, rows: int) -> dict[str, Any]:
    language, tokenizer = model.language.model, model.language.tokenizer
    tied = bool(language.config.tie_word_embeddings)
    text = plain_config(language.config) | {"vocab_size": rows, "architectures": [type(language).__name__], "tie_word_embeddings": tied}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = plain_config(model.vision.model.config)
    if vision["model_type"] == "siglip_vision_model":
        vision["vision_use_head"] = False  # its pooling head is not part of the export
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": model.language.image_token_id,
        "image_seq_length": model.tokens_per_tile,
        "projector_hidden_act": layers.activation,
        "multimodal_projector_bias": True,
        "vision_feature_layer": model.vision.num_layers_used - len(model.vision.blocks()) - 1,
        "vision_feature_select_strategy": "default" if model.vision.num_prefix_tokens else "full",
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": vision,
    }


def _weights(model: VisionLanguageModel, layers: TwoLayers, rows: int) -> dict[str, Tensor]:
    language, tower = model.language, model.vision.model
    level = SPOKEN_TO.get(tower.config.model_type, "")
    weights = {f"vision_tower.{level}{name}": tensor for name, tensor in tower.state_dict().items() if not name.startswith("head.")}
    weights |= {f"multi_modal_projector.{name}": tensor for name, tensor in layers.tensors().items()}
    weights |= {f"language_model.model.{name}": tensor for name, tensor in language.decoder.state_dict().items()}
    if not language.model.config.tie_word_embeddings:
        weights["language_model.lm_head.weight"] = language.model.get_output_embeddings().weight
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if name in weights:
            weights[name] = grown(weights[name], rows)
    return {name: tensor.detach().float().contiguous() for name, tensor in weights.items()}


def grown(table: Float[Tensor, "V E"], rows: int) -> Float[Tensor, "W E"]:
    """A table of embeddings, or of a head, with more rows: the mean of the old ones, whose logit is the mean logit and so never the largest."""
    if rows == len(table):
        return table
    mean = table.detach().float().mean(0).to(table.dtype)
    return torch.cat([table.detach(), mean.expand(rows - len(table), -1)])

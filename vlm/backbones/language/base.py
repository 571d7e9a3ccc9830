"""What a language model is before any download (`LanguageSpec`), and the one wrapper of causal language models. Knows no single family.

A family is data: source, architecture, chat template, LoRA targets. The wrapper never resizes the embedding table: image tokens are spliced, padding is
masked, so both get ids without rows, and the frozen base stays bit-equal to its source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.language import attention
from vlm.backbones.language.lora import LoRAOptions, add_lora
from vlm.backbones.loading import Load, check_architecture, from_pretrained
from vlm.errors import CheckpointError
from vlm.types import IMAGE_PLACEHOLDER, ChatTemplate, Documents


@dataclass(frozen=True, kw_only=True)
class LanguageSpec:
    """One language model, known before any download.

    Attributes:
        build: Makes the transformers causal language model; see `Load`.
        tokenizer: Makes its tokenizer from a source (hub id or folder; None for one that needs no download, where the family has such).
        source: Hub id, or what else `build` loads by default.
        template: Chat template of the family's instruction format.
        architecture: Config values that size the model.
        width: Width of the embeddings.
        vocab_size: Rows of the embedding table.
        max_length: Context in tokens.
        num_parameters: Parameters as published.
        lora_targets: Names of the linear layers that an adapter gets by default.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names, among them Prismatic's.
        package: Optional pip package that `build` needs, or empty.
    """

    build: Callable[["LanguageSpec", Load], nn.Module]
    tokenizer: Callable[["LanguageSpec", str | Path | None], Any]
    source: str
    template: ChatTemplate
    width: int
    vocab_size: int
    max_length: int
    num_parameters: int
    license: str
    paper: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    aliases: tuple[str, ...] = ()
    package: str = ""


class HFCausalLM(nn.Module):
    """A causal language model of transformers over embeddings, with per-document attention."""

    def __init__(self, model: nn.Module, *, tokenizer: Any, template: ChatTemplate, max_length: int, lora: LoRAOptions | None = None):
        """Wrap a loaded model; its weights are not changed.

        Args:
            model: A `...ForCausalLM` of transformers.
            tokenizer: Its tokenizer; gets the `<image>` token.
            template: Chat template.
            max_length: Context in tokens.
            lora: Adapter to add, or None.
        """
        super().__init__()
        attention.register()
        self.model, self.tokenizer, self.template, self.max_length = model, tokenizer, template, max_length
        self.width = model.get_input_embeddings().weight.shape[1]
        self.tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]}, replace_extra_special_tokens=False)
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        if lora is not None:
            add_lora(self.model, lora)

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        return self.model.get_decoder()

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Input embeddings; ids without a row (image tokens, which the splice replaces) get row 0."""
        table = self.model.get_input_embeddings()
        return table(torch.where(ids < table.weight.shape[0], ids, 0))

    def forward(self, embeds: Float[Tensor, "B T E"], documents: Documents) -> Float[Tensor, "B T E"]:
        """Final hidden states; each document is seen by itself alone."""
        self.decoder.config._attn_implementation = attention.NAME
        out = self.decoder(inputs_embeds=embeds, position_ids=documents.positions, use_cache=False, documents=documents)
        return out.last_hidden_state

    def logits(self, hidden: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Next-token scores by the model's own head, its bias included."""
        return self.model.get_output_embeddings()(hidden)

    def generate(self, embeds: Float[Tensor, "B T E"], mask: Int[Tensor, "B T"], **settings: Any) -> Int[Tensor, "B new"]:
        """transformers' own `generate` on spliced, left-padded embeddings; returns the new tokens alone."""
        self.decoder.config._attn_implementation = "sdpa"
        return self.model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)

    def blocks(self) -> Sequence[nn.Module]:
        """The decoder layers."""
        return tuple(self.decoder.layers)


def build_language(spec: LanguageSpec, load: Load, *, template: ChatTemplate | None = None, lora: LoRAOptions | None = None) -> HFCausalLM:
    """A language model with its tokenizer, ready to be trained or asked.

    Args:
        spec: What to build.
        load: Where its weights come from; `Load(source=spec.source)` for the published ones, None for random weights.
        template: Chat template, or None for the spec's own.
        lora: Adapter to add, or None.

    Raises:
        CheckpointError: If weights or tokenizer cannot be found or are of another model.
    """
    model = spec.build(spec, load)
    tokenizer = spec.tokenizer(spec, load.source)
    return HFCausalLM(model, tokenizer=tokenizer, template=template or spec.template, max_length=spec.max_length, lora=lora)


def causal_lm(spec: LanguageSpec, load: Load) -> nn.Module:
    """Any causal language model that transformers knows, from its config.

    Raises:
        CheckpointError: If the weights cannot be found, miss a tensor, or are of another size than the spec says.
    """
    import transformers

    values = dict(spec.architecture)
    if load.source is None:
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=load.dtype, attn_implementation="sdpa")
    model, info = from_pretrained(transformers.AutoModelForCausalLM, load.source, dtype=load.dtype)
    check_architecture(model.config, values, load.source)
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        raise CheckpointError(f"{load.source} lacks weights of the language model: {missing[:5]}.")
    return model


def auto_tokenizer(spec: LanguageSpec, source: str | Path | None) -> Any:
    """The tokenizer that lies beside the weights.

    Raises:
        CheckpointError: If there is none.
    """
    import transformers

    source = spec.source if source is None else source
    try:
        return transformers.AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"No tokenizer at {str(source)!r} ({first}). Name a local folder with --model.language-source.") from error

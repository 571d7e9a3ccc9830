"""What a language model is before any download (`LanguageSpec`), and the one wrapper of causal language models. Knows no single family.

A family is data: source, architecture, chat template, LoRA targets. The wrapper never resizes the embedding table: image tokens are spliced and
padding is masked, so both may have ids without rows, and the frozen base stays bit-equal to its source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.language import attention
from vlm.backbones.language.chat_templates import fit_template
from vlm.backbones.language.last_layer import at_needed_places
from vlm.backbones.loading import Load, check_architecture, check_complete, from_pretrained, read_config
from vlm.errors import CheckpointError, ConfigError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate
from vlm.types import Documents


@dataclass(frozen=True, kw_only=True)
class LanguageSpec:
    """One language model, known before any download.

    Attributes:
        build: Makes the transformers causal language model; see `Load`.
        tokenizer: Makes its tokenizer from a source; None as the source stands for the default one.
        source: What `Load.source` is by default: a hub id, a pip package, or None for models that are random by intent.
        template: Chat template of the family's instruction format; None if the user must name one.
        architecture: Config values that size the model, `model_type` among them; a loaded model must agree with each.
        width: Width of the embeddings.
        vocab_size: Rows of the embedding table.
        max_length: Context in tokens.
        num_parameters: Parameters as published, tied embeddings counted once; None if not known before the download.
        lora_targets: Names of the linear layers that an adapter gets by default, or `all-linear`.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names, among them Prismatic's.
        package: Optional pip package that `build` needs, or empty.
    """

    build: Callable[["LanguageSpec", Load], nn.Module]
    tokenizer: Callable[["LanguageSpec", str | Path | None], Any]
    source: str | None
    template: ChatTemplate | None
    width: int
    vocab_size: int
    max_length: int
    num_parameters: int | None
    license: str
    paper: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    lora_targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    aliases: tuple[str, ...] = ()
    package: str = ""


class HFCausalLM(nn.Module):
    """A causal language model of transformers over embeddings, with per-document attention."""

    tokenizer: Any
    image_token_id: int
    template: ChatTemplate

    def __init__(self, model: Any, *, tokenizer: Any, template: ChatTemplate | None, max_length: int) -> None:
        """Wrap a loaded model; its weights are not changed.

        Args:
            model: A `...ForCausalLM` of transformers; not named as a type, so that this file imports no transformers.
            tokenizer: Its tokenizer; gets the `<image>` token and, if it has no padding token, its end token as one. None for a model that is
                only sized, and has no words.
            template: Chat template; its `{bos}` and `{eos}` become the tokenizer's. None without a tokenizer.
            max_length: Context in tokens.

        Raises:
            ConfigError: If the attention of this family cannot be kept inside documents, or the template is not for this tokenizer.
        """
        super().__init__()
        _check_attention(model)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.model: Any = model
        at_needed_places(self.blocks()[-1])
        self.max_length = max_length
        self.width = model.get_input_embeddings().weight.shape[1]
        if tokenizer is not None and template is not None:
            self._give_words(tokenizer, template)

    def _give_words(self, tokenizer: Any, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        self.template = fit_template(template, tokenizer)
        self.model.generation_config = _generation_config(tokenizer, self.template)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token; of a byte-level one, its bytes, which are as many or more."""
        return max(map(len, self.tokenizer.get_vocab()))

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return self.model.get_decoder()

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Input embeddings; ids without a row (image tokens, which the splice replaces) get row 0."""
        table = self.model.get_input_embeddings()
        return table(torch.where(ids < table.weight.shape[0], ids, 0))

    def forward(self, embeds: Float[Tensor, "B T E"], documents: Documents, *, needed: Int[Tensor, " M"] | None = None) -> Float[Tensor, "B T E"]:
        """Final hidden states; each document is seen by itself alone.

        Args:
            embeds: Embeddings of the rows.
            documents: Who sees whom.
            needed: Places in the flattened rows that are read afterwards, all different; elsewhere the states are then of no use. None for all.
        """
        if documents.hidden is not None:  # rare, so by transformers' own mask, which costs more
            seen = (~documents.hidden).long()
            return self.decoder(inputs_embeds=embeds, position_ids=documents.positions, attention_mask=seen, use_cache=False).last_hidden_state
        out = self.decoder(
            inputs_embeds=embeds,
            position_ids=documents.positions,
            attention_mask=attention.stand_in_mask(embeds),
            use_cache=False,
            document_pieces=attention.pieces_of(documents),
            needed=needed,
        )
        return out.last_hidden_state

    def logits(self, hidden: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Next-token scores by the model's own head, its bias included."""
        return self.model.get_output_embeddings()(hidden)

    @property
    def num_logits(self) -> int:
        """Scores that the head gives for a row, padding of the vocabulary included."""
        return self.model.get_output_embeddings().weight.shape[0]

    def generate(self, embeds: Float[Tensor, "B T E"], mask: Int[Tensor, "B T"], **settings: Any) -> Int[Tensor, "B new"]:
        """The new tokens alone, by transformers' own `generate` on spliced, left-padded embeddings; greedy unless `settings` say otherwise."""
        return self.model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)

    def blocks(self) -> Sequence[nn.Module]:
        """The decoder layers."""
        return tuple(self.decoder.layers)


def build_language(spec: LanguageSpec, load: Load, *, template: ChatTemplate | None = None) -> HFCausalLM:
    """A language model with its tokenizer, in evaluation mode.

    Args:
        spec: What to build.
        load: Where its weights come from; `Load(source=spec.source)` for the published ones, None for random weights.
        template: Chat template, or None for the spec's own.

    Raises:
        CheckpointError: If weights or tokenizer cannot be found, are of another model, or do not belong together.
        ConfigError: If no template is known or the template is not for this tokenizer.
    """
    template = template or spec.template
    if template is None:
        raise ConfigError(f"No chat template is known for {load.source or spec.source}. Name one with --model.template (`vlm list templates`).")
    model = spec.build(spec, load)
    tokenizer = spec.tokenizer(spec, load.source)
    _check_tokenizer(tokenizer, model, load.source or spec.source)
    return HFCausalLM(model, tokenizer=tokenizer, template=template, max_length=spec.max_length).eval()


def causal_lm(spec: LanguageSpec, load: Load) -> nn.Module:
    """Any causal language model that transformers knows, from its config, in evaluation mode.

    Raises:
        CheckpointError: If the weights cannot be found, miss a tensor, or are of another size than the spec says.
    """
    import transformers

    if load.source is None:
        return transformers.AutoModelForCausalLM.from_config(_config_of(spec), dtype=load.dtype, attn_implementation="sdpa").eval()
    check_source(spec, load.source)
    model, info = from_pretrained(transformers.AutoModelForCausalLM, load.source, dtype=load.dtype)
    check_complete(info, load.source)
    return model


def check_source(spec: LanguageSpec, source: str | Path) -> None:
    """Compare the config of a source with a spec.

    Raises:
        CheckpointError: If there is no config, or it sizes another model.
    """
    import transformers

    # both sides go through the same config class, which fills in defaults and rewrites old spellings
    expected = _config_of(spec)
    check_architecture(read_config(transformers.AutoConfig, source), {key: getattr(expected, key) for key in spec.architecture}, source)


def _config_of(spec: LanguageSpec) -> Any:
    import transformers

    values = dict(spec.architecture)
    return transformers.AutoConfig.for_model(values.pop("model_type"), **values)


def auto_tokenizer(spec: LanguageSpec, source: str | Path | None) -> Any:
    """The tokenizer that lies beside the weights.

    Raises:
        CheckpointError: If there is none.
    """
    return tokenizer_at(str(spec.source if source is None else source))


def tokenizer_at(source: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        CheckpointError: If there is none.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"No tokenizer at {source!r} ({first}). Name a local folder with --model.language-source.") from error


def _generation_config(tokenizer: Any, template: ChatTemplate) -> Any:
    """Ends and padding alone: published sampling settings would warn in greedy decoding and differ from model to model."""
    import transformers

    ends = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in template.stop)}
    return transformers.GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)


def _check_attention(model: Any) -> None:
    """Refuse families that mix tokens elsewhere than in an attention function that transformers lets us replace."""
    name = model.config.model_type
    layers = set(getattr(model.config, "layer_types", None) or ())
    if foreign := sorted(layers - {"full_attention", "sliding_attention"}):
        raise ConfigError(f"Models of type {name!r} have layers of kind {', '.join(foreign)}, whose tokens cannot be kept inside documents.")
    if not getattr(model, "_supports_attention_backend", False) or not hasattr(model.get_decoder(), "layers"):
        raise ConfigError(f"Models of type {name!r} do not use transformers' attention interface, so documents in one row could see each other.")


def _check_tokenizer(tokenizer: Any, model: Any, source: str | Path | None) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted(token for token, i in tokenizer.get_vocab().items() if i >= rows and token != IMAGE_PLACEHOLDER)
    if beyond:
        raise CheckpointError(
            f"The tokenizer of {source} has {len(beyond)} tokens beyond the model's {rows} embedding rows, {beyond[0]!r} among them: "
            "tokenizer and weights are of different models."
        )
    if tokenizer.eos_token is None:
        raise CheckpointError(f"The tokenizer of {source} names no end token (eos_token), so answers would never end.")

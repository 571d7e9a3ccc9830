"""Text encoders made of a transformer and a pooling of its last hidden states. Knows no family; how a text is written is `Reading`'s.

Texts are padded to the longest of the batch and padding is masked, so a vector does not depend on the texts beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.loading import Load, check_architecture, check_complete, from_pretrained, read_config
from vlm.backbones.text.base import TextSpec, check_texts, check_tokenizer, description, tokenizer_hash
from vlm.backbones.text.reading import Reading, count_tokens, cut
from vlm.errors import ConfigError


class Tokens(NamedTuple):
    """A batch of texts.

    Attributes:
        ids: Token ids.
        seen: 1 where there is a token, 0 where there is padding.
        counted: 1 for the tokens that a mean counts.
    """

    ids: Int[Tensor, "B T"]
    seen: Int[Tensor, "B T"]
    counted: Int[Tensor, "B T"]


class PooledTower(nn.Module):
    """A transformer of hidden states: token ids to one vector a row, in fp32."""

    def __init__(self, model: Any, *, pooling: str, adapters: Sequence[str] = ()):
        """Wrap a model.

        Args:
            model: A model of transformers without head.
            pooling: See `Reading`.
            adapters: What was merged into its weights, for `describe`.
        """
        super().__init__()
        model.config.use_cache = False
        self.model: Any = model
        self.pooling, self.adapters = pooling, tuple(adapters)
        self.vocab_size: int = model.config.vocab_size
        self.end_token_id = None
        self._layers = _path_of_layers(model)

    def forward(
        self, ids: Int[Tensor, "B T"], seen: Int[Tensor, "B T"] | None = None, counted: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B E"]:
        """The pooled vectors; by default all tokens are seen, and all that are seen are counted."""
        hidden = self.model(input_ids=ids, attention_mask=seen).last_hidden_state
        seen = torch.ones_like(ids) if seen is None else seen
        return pool(hidden.float(), self.pooling, seen=seen, counted=seen if counted is None else counted)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return tuple(self.model.get_submodule(self._layers))


def _path_of_layers(model: Any) -> str:
    """Where a model has its list of layers. A path, not the modules: what wraps a layer later puts its own module there."""
    depth = model.config.num_hidden_layers
    return next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth)


def pool(hidden: Float[Tensor, "B T E"], pooling: str, *, seen: Int[Tensor, "B T"], counted: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
    """One vector a row, on whichever side the padding is; see `Reading.pooling`."""
    if pooling in ("mean", "weighted_mean"):
        weights = (counted if pooling == "mean" else counted.cumsum(1) * counted).to(hidden.dtype)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
        return (hidden.masked_fill(weights == 0, 0) * weights).sum(1)  # what stands at padding may be infinite
    place = seen.argmax(1) if pooling == "bos_token" else seen.shape[1] - 1 - seen.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


class PooledTextEncoder(nn.Module):
    """A tower with its tokenizer and reading: texts to vectors."""

    def __init__(self, tower: Any, *, tokenizer: Any, width: int, max_length: int, reading: Reading, source: str | Path | None = None):
        """Join a tower and its tokenizer.

        Args:
            tower: From ids and masks to vectors, as `PooledTower`.
            tokenizer: A tokenizer of transformers; gets its end token as padding if it has none.
            width: Width of the vectors.
            max_length: Tokens that a text is cut to, template and instruction included.
            reading: How texts are read.
            source: Where the weights came from, for `describe`.

        Raises:
            CheckpointError: If tower and tokenizer do not belong together.
            ConfigError: If the first token is to be pooled, and the tokenizer sets none before a text.
        """
        super().__init__()
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        check_tokenizer(tokenizer, tower)
        self.tower, self.tokenizer, self.reading = tower, tokenizer, reading
        self.width, self.max_length = width, max_length
        self.source = source
        if reading.pooling == "bos_token" and tokenizer("a").input_ids[0] not in (tokenizer.bos_token_id, tokenizer.cls_token_id):
            raise ConfigError(
                "Pooling bos_token needs a tokenizer that sets a token before every text, and this one sets none; choose another pooling."
            )

    def encode(self, texts: Sequence[str], *, instruction: str = "") -> Float[Tensor, "B E"]:
        """One vector a text, in fp32, not normalized.

        Args:
            texts: The texts.
            instruction: One sentence that stands before each, such as "Retrieve images of this caption:"; the reading's own if empty.

        Raises:
            DataFormatError: If `texts` is empty or a single string.
        """
        tokens = self.tokenize(texts, instruction=instruction)
        device = next(self.parameters()).device
        return self(tokens.ids.to(device), tokens.seen.to(device), tokens.counted.to(device))

    def tokenize(self, texts: Sequence[str], *, instruction: str = "") -> Tokens:
        """Token ids and masks of texts, padded to the longest.

        A text without a token is read as the end token. Where nothing behind the instruction is left to count, all tokens count.

        Raises:
            DataFormatError: If `texts` is empty, or a single string, which would be read as one text a letter.
        """
        check_texts(texts)
        reading, longest = self.reading, self.max_length
        texts = cut(texts, self.tokenizer, max_length=longest, doc_max_length=reading.doc_max_length)
        written = [reading.write(text, instruction) for text in texts]
        rows = self.tokenizer([each.head + each.tail for each in written], truncation=True, max_length=longest).input_ids
        rows = [row or [self.tokenizer.eos_token_id or self.tokenizer.pad_token_id] for row in rows]
        counts = [len(row) for row in rows]
        if reading.skip_instruction:
            # as the original does: counted by itself, though a word may have other tokens behind an instruction
            tails = count_tokens([each.tail for each in written], self.tokenizer, max_length=longest)
            counts = [min(tail, length) or length for tail, length in zip(tails, counts, strict=True)]
        seen = [[1] * len(row) for row in rows]
        counted = [[0] * (len(row) - count) + [1] * count for row, count in zip(rows, counts, strict=True)]
        return Tokens(self._padded(rows, self.tokenizer.pad_token_id), self._padded(seen, 0), self._padded(counted, 0))

    def _padded(self, rows: Sequence[list[int]], fill: int) -> Int[Tensor, "B T"]:
        longest = max(map(len, rows))
        pads = [[fill] * (longest - len(row)) for row in rows]
        left = self.reading.padding_side == "left"
        return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])

    def forward(self, ids: Int[Tensor, "B T"], seen: Int[Tensor, "B T"], counted: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Vectors of texts that are tokens already."""
        return self.tower(ids, seen, counted)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self.tower.blocks()

    def describe(self, *, instruction: str = "") -> dict[str, object]:
        """All that changes the vectors but the values of the weights, as a cache's key needs it; see `TextEncoder`."""
        instruction = instruction or self.reading.instruction
        facts = description(self, source=self.source, tokenizer=tokenizer_hash(self.tokenizer), instruction=instruction)
        return vars(self.reading) | {"adapters": list(self.tower.adapters)} | facts


def pooled_text(spec: TextSpec, load: Load) -> PooledTextEncoder:
    """The encoder of a spec that has a reading."""
    assert spec.reading is not None
    tokenizer, tower = spec.tokenizer(spec, load.source), spec.build(spec, load)
    return PooledTextEncoder(tower, tokenizer=tokenizer, width=spec.width, max_length=spec.max_length, reading=spec.reading, source=load.source)


def headless(spec: TextSpec, load: Load) -> Any:
    """A model of transformers without head and pooler: random from the spec's architecture, or with weights whose config agrees with it.

    Raises:
        CheckpointError: If the weights cannot be found, miss a tensor, or are of another size than the spec says.
    """
    import transformers

    values = dict(spec.architecture)
    expected = transformers.AutoConfig.for_model(values["model_type"], **{key: value for key, value in values.items() if key != "model_type"})
    model: Any
    # no attn_implementation: SDPA where the family has it, which MPNet and Gemma 2 do not
    if load.source is None:
        model = transformers.AutoModel.from_config(expected, dtype=load.dtype)
    else:
        # both sides went through the same config class, which fills in defaults and rewrites old spellings
        check_architecture(read_config(transformers.AutoConfig, load.source), {key: getattr(expected, key) for key in values}, load.source)
        model, info = from_pretrained(transformers.AutoModel, load.source, dtype=load.dtype, attn_implementation=None, trust_remote_code=False)
        check_complete(info | {"missing_keys": [key for key in info["missing_keys"] if not key.startswith("pooler.")]}, load.source)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # BERT's, which was trained for another task
    return model

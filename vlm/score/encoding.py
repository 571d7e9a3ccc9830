"""Tiles and texts to unit vectors by a dual encoder, in batches that fit: texts of similar length together, up to a number of tokens. Reads no file.

Texts of CLIP's text tower are padded to the longest of their batch only: the tower is causal and pools at the end token, so nothing behind it is seen.
Towers that see their padding (SigLIP) get all of it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vlm.backbones.text.base import PaddedTextEncoder, TransformersText
from vlm.errors import ConfigError
from vlm.models.contrastive import unit

log = logging.getLogger(__name__)

BATCH_ON_CPU = 16  # more costs memory and gains nothing where cores are the limit; benchmarks/score.md
TOKENS_ON_CPU, TOKENS_ON_GPU = 512, 65_536  # of texts
LARGEST_BATCH = 1024
PROBES = (8, 16)  # pictures of the two batches whose memory tells what one more picture takes
SHARE_OF_MEMORY = 0.6  # of a GPU's free memory that a batch may take


class Texts(NamedTuple):
    """Encoded texts: their vectors, the tokens of each before it was cut, and whether it was."""

    vectors: Float[Tensor, "M J"]
    tokens: list[int]
    truncated: list[bool]


class PairEncoder:
    """The two sides of a dual encoder, without gradients."""

    def __init__(self, model: Any, *, batch_size: str = "auto", batch_tokens: int | None = None, compile: bool = False):
        """Take a model.

        Args:
            model: A `vlm.models.dual_encoder.DualEncoder`.
            batch_size: Pictures at once, or auto.
            batch_tokens: Tokens of texts at once, padding included; None for what suits the device.
            compile: Compile both towers.
        """
        self.model = model.eval().requires_grad_(False)
        self.batch_tokens = batch_tokens or (TOKENS_ON_GPU if model.device.type == "cuda" else TOKENS_ON_CPU)
        self.policy = model.image.image_policy
        self._trims = isinstance(model.text, PaddedTextEncoder) and isinstance(model.text.tower, TransformersText) and pools_at_end(model.text.tower)
        self.width = self.images([self._blank()]).shape[1]
        if compile:
            self._compile()
        self.batch_size = self._fitting() if batch_size == "auto" else int(batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @torch.inference_mode()
    def images(self, tiles: Sequence[UInt8[Tensor, "3 H W"]]) -> Float[Tensor, "B J"]:
        """Unit vectors of one batch of pictures; a batch that does not fit into a GPU's memory is halved."""
        return torch.cat(list(self._halved(self._image_vectors, list(tiles))))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Texts:
        """Unit vectors of texts, in their order, encoded by length."""
        counts = self.count_tokens(texts)
        limit = self.model.text.max_length
        vectors = torch.empty(len(texts), self.width)
        for places in self._by_length([min(count.tokens, limit) for count in counts]):
            done = 0
            for part in self._halved(self._text_vectors, [texts[i] for i in places]):
                vectors[places[done : done + len(part)]] = part
                done += len(part)
        return Texts(vectors, [count.tokens for count in counts], [count.truncated for count in counts])

    def count_tokens(self, texts: Sequence[str]) -> list["Count"]:
        """Tokens of each text as the model reads it, special tokens included, before it is cut."""
        return count_tokens(self.model.text, texts, instruction=instruction_of(self.model))

    def _by_length(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of the texts of each batch: the longest first, so that what does not fit is found out at once."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        start = 0
        while start < len(order):
            longest = lengths[order[start]] if self._trims or not isinstance(self.model.text, PaddedTextEncoder) else self.model.text.max_length
            size = max(1, self.batch_tokens // max(1, longest))
            yield order[start : start + size]
            start += size

    def _halved(self, encode: Callable[[Sequence[Any]], Tensor], items: Sequence[Any]) -> Iterator[Tensor]:
        """Vectors of all items, in pieces that fit.

        Raises:
            torch.OutOfMemoryError: If a single one does not fit.
        """
        try:
            found = encode(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
            torch.cuda.empty_cache()
        else:
            yield found
            return
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            yield from self._halved(encode, half)

    def _image_vectors(self, tiles: Sequence[Tensor]) -> Tensor:
        vectors = self.model.image(torch.stack(list(tiles)).to(self.device))
        heads = self.model.heads
        return unit(vectors if heads is None else heads.image_head(vectors)).cpu()

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        if not self._trims:
            return self.model.encode_text(texts, batch_size=len(texts))
        ids = without_padding(self.model.text.tokenize(texts), self.model.text.tower.end_token_id)
        vectors = self.model.text(ids.to(self.device))
        heads = self.model.heads
        return unit(vectors if heads is None else heads.text_head(vectors)).cpu()

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compile both towers now, for batches of any size and texts of any length; only a batch of one is compiled anew, when one comes."""
        begin = time.perf_counter()
        for tower in (self.model.image, self.model.text):
            tower.compile(dynamic=True)
        self.images([self._blank()] * 2)
        self._text_vectors(["a text of some words", "another text"])
        log.info("compiled both encoders in %.0f s", time.perf_counter() - begin)

    def _blank(self) -> UInt8[Tensor, "3 H W"]:
        return torch.zeros(3, self.policy.size, self.policy.size, dtype=torch.uint8)

    def _fitting(self) -> int:
        """Pictures that a batch can hold: on a GPU by the memory that two small batches take."""
        if self.device.type != "cuda":
            return BATCH_ON_CPU
        taken = [self._taken(size) for size in PROBES]
        each = max(1, (taken[1] - taken[0]) // (PROBES[1] - PROBES[0]))
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(LARGEST_BATCH, int(free * SHARE_OF_MEMORY) // each))

    def _taken(self, size: int) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        self.images([self._blank()] * size)
        return torch.cuda.max_memory_allocated(self.device)


def pools_at_end(tower: TransformersText) -> bool:
    """True for towers whose tokens see no later ones and whose vector is the end token's: CLIP's."""
    return tower.end_token_id is not None


def without_padding(ids: Int[Tensor, "B T"], end: int) -> Int[Tensor, "B t"]:
    """Token ids up to the last row's first end token; as they are if a row has none."""
    ends = ids == end
    if not bool(ends.any(1).all()):
        return ids
    return ids[:, : int(ends.int().argmax(1).max()) + 1]


class Count(NamedTuple):
    """Tokens of a text before it is cut, and whether it is."""

    tokens: int
    truncated: bool


def count_tokens(encoder: Any, texts: Sequence[str], *, instruction: str = "") -> list[Count]:
    """Tokens of each text as a text encoder reads it, special tokens included.

    Args:
        encoder: A text encoder of `vlm.backbones.text`.
        texts: The texts.
        instruction: What it is told before each.

    Raises:
        ConfigError: If its tokenizer is of a kind that does not count.
    """
    reading = getattr(encoder, "reading", None)
    if reading is None:
        return [Count(count, count > encoder.max_length) for count in _lengths(encoder.tokenizer, list(texts))]
    written = [reading.write(text, instruction) for text in texts]
    whole = _lengths(encoder.tokenizer, [each.head + each.tail for each in written])
    longest = encoder.max_length if reading.doc_max_length is None else reading.doc_max_length
    alone = _lengths(encoder.tokenizer, list(texts), special=False)
    return [Count(count, count > encoder.max_length or own > longest) for count, own in zip(whole, alone, strict=True)]


def _lengths(tokenizer: Any, texts: list[str], *, special: bool = True) -> list[int]:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    if hasattr(tokenizer, "sot_token_id") and hasattr(tokenizer, "encode"):  # open_clip's own, whose two special tokens `encode` leaves out
        return [len(tokenizer.encode(text)) + 2 * special for text in texts]
    if not callable(tokenizer):
        raise ConfigError(f"The tokenizer {type(tokenizer).__name__} does not say how long a text is. Name another model.")
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False).input_ids]


def instruction_of(model: Any) -> str:
    """What the model's text encoder is told before each text."""
    return model.config.instruction if model.config else ""

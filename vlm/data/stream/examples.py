"""Samples to examples: pictures to tiles, conversations to ids and labels. Knows the model only as a chat template, a tokenizer, an image policy and a token count."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vlm.data.chat import Encoded, check_template, encode_chat
from vlm.data.image import layout_of, load_image, load_tiles, picture_size
from vlm.data.sample import Sample
from vlm.errors import ConfigError, DataFormatError, VLMError
from vlm.messages import ChatTemplate
from vlm.types import ImageLayout, ImagePolicy

Result = TypeVar("Result")


@dataclass(frozen=True)
class Example:
    """One conversation, tokenized, with its pictures as tiles.

    Attributes:
        id: Name of the sample, for messages.
        ids: Token ids, images expanded.
        labels: `ids` where the loss looks, IGNORE_INDEX elsewhere.
        pixels: Tiles in the order of their placeholders; N is 0 without pictures.
        source: Number of the source that the sample is from.
        truncated: True if turns or tokens were left out because the conversation is too long.
        hidden: Places of tokens that no token attends to.
    """

    id: str
    ids: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]
    pixels: UInt8[Tensor, "N 3 H W"]
    source: int = 0
    truncated: bool = False
    hidden: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExampleTree:
    """Conversations about the same pictures, whose first tokens stand in the row only once.

    Attributes:
        examples: One or several; the first one's tiles are those of all.
        shared: Tokens from the start that are common to all; 0 for a single example.
    """

    examples: tuple[Example, ...]
    shared: int = 0

    @property
    def pixels(self) -> UInt8[Tensor, "N 3 H W"]:
        """The tiles of the tree."""
        return self.examples[0].pixels


class ChatExamples:
    """Samples, encoded when they are asked for."""

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        template: ChatTemplate,
        tokenizer: Any,
        image_token_id: int,
        policy: ImagePolicy,
        tokens_per_image: Callable[[ImageLayout], int],
        max_length: int,
        limit: str = "--stage.max-length",
        source_of: Callable[[int], int] | None = None,
        num_sources: int = 1,
    ):
        """Remember how samples become examples.

        Args:
            samples: The samples.
            template: Chat template.
            tokenizer: Fast tokenizer with an `<image>` token.
            image_token_id: Id of that token.
            policy: How pictures become tiles.
            tokens_per_image: Image tokens of a picture, from its layout.
            max_length: Longest conversation in tokens, image tokens included; what is longer is truncated (`encode_chat`).
            limit: The setting that says so, for messages.
            source_of: Number of the source that a sample is from; None where all are from one.
            num_sources: Sources of the mixture.

        Raises:
            ConfigError: If template and tokenizer do not fit.
        """
        check_template(template, tokenizer)
        self.samples, self.template, self.tokenizer, self.image_token_id = samples, template, tokenizer, image_token_id
        self.policy, self.tokens_per_image, self.max_length, self.limit = policy, tokens_per_image, max_length, limit
        self.source_of, self.num_sources = source_of, num_sources

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
            DataFormatError: If a picture cannot be read, placeholders and pictures differ in number, or the conversation cannot be made short enough.
            ConfigError: If a token crosses the border of an answer.
        """
        return self.tree([index]).examples[0]

    def tree(self, indices: Sequence[int]) -> ExampleTree:
        """Examples of samples that share their pictures; the pictures are opened once.

        Raises:
            DataFormatError: As for one example, or if the samples do not share pictures and first tokens.
        """
        samples = [self.samples[index] for index in indices]
        tiled = {path: load_tiles(path, self.policy) for path in {path: None for sample in samples for path in sample.images}}
        encoded = [self._encode(sample, [tiled[path][1] for path in sample.images]) for sample in samples]
        pixels = self._join([tiled[path][0] for path in samples[0].images[: encoded[0].num_images]])
        source = self.source_of(indices[0]) if self.source_of else 0
        examples = tuple(
            Example(sample.id, one.ids, one.labels, pixels, source=source, truncated=one.dropped_turns > 0 or one.cut_tokens > 0, hidden=one.hidden)
            for sample, one in zip(samples, encoded, strict=True)
        )
        if len(examples) == 1:
            return ExampleTree(examples)
        shared = encoded[0].shared_length(self.image_token_id)
        for other in examples[1:]:
            if not torch.equal(other.ids[:shared], examples[0].ids[:shared]):
                raise DataFormatError(
                    f"Samples {examples[0].id!r} and {other.id!r} were planned to share their pictures' tokens, and do not: the data has changed since "
                    "its lengths were counted. Delete the lengths-*.npy beside the data."
                )
        return ExampleTree(examples, shared)

    def measure(self, index: int, *, verify: bool = False) -> tuple[int, int, int, int]:
        """Tokens of a sample: all, those that conversations about the same pictures can share, image tokens; and a hash of pictures and shared tokens.

        Opens no picture; only where preparation has not stored its size, the head of the file is read.

        Args:
            index: The sample.
            verify: Decode pictures that preparation has not looked at.

        Raises:
            DataFormatError: If the head of a picture cannot be read, or the conversation cannot be made short enough.
        """
        sample = self.samples[index]
        sizes = sample.sizes or tuple((_decoded_size if verify else picture_size)(path) for path in sample.images)
        encoded = self._encode(sample, [layout_of(height, width, self.policy) for height, width in sizes])
        shared = encoded.shared_length(self.image_token_id)
        pictures = "\n".join(str(path) for path in sample.images[: encoded.num_images])
        digest = hashlib.blake2b(pictures.encode() + encoded.ids[:shared].numpy().tobytes(), digest_size=8).digest()
        images = int((encoded.ids == self.image_token_id).sum())
        return len(encoded.ids), shared, images, int.from_bytes(digest, "little", signed=True)

    def _encode(self, sample: Sample, layouts: Sequence[ImageLayout]) -> Encoded:
        try:
            return encode_chat(
                sample.messages,
                template=self.template,
                tokenizer=self.tokenizer,
                image_token_id=self.image_token_id,
                tokens_per_image=[self.tokens_per_image(layout) for layout in layouts],
                max_length=self.max_length,
            )
        except DataFormatError as error:
            raise DataFormatError(f"Sample {sample.id!r}: {error}".replace("--stage.max-length", self.limit)) from None

    def _join(self, tiles: Sequence[Tensor]) -> UInt8[Tensor, "N 3 H W"]:
        if not tiles:
            return torch.empty(0, 3, self.policy.size, self.policy.size, dtype=torch.uint8)
        return tiles[0] if len(tiles) == 1 else torch.cat(list(tiles))

    @property
    def pad_id(self) -> int:
        """An id for padding: nothing attends to it."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in known if token is not None)


def _decoded_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in a file, all of which is decoded to see that it can be."""
    image = load_image(path)
    return image.height, image.width


@dataclass(frozen=True)
class Failure:
    """An error that a user can cause, as a value: exceptions that cross processes arrive with another process's traceback as their text."""

    kind: type[VLMError]
    message: str

    def error(self) -> VLMError:
        """The error, to be raised."""
        return self.kind(self.message)


def guarded(work: Callable[[], Result]) -> Result | Failure:
    """The result of some work, or what went wrong."""
    try:
        return work()
    except VLMError as error:
        return Failure(ConfigError if isinstance(error, ConfigError) else DataFormatError, str(error))

"""The words that every layer shares: axis letters, image layouts, batches, and the protocols of the parts; those of conversations are in `vlm.messages`.

Axis letters in shapes: B rows, T tokens, N tiles, H W pixels, P patches, K tokens per tile, D vision width, E language width, V vocabulary,
M labelled positions. This file holds no computation beyond what the types themselves mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from vlm.messages import ChatTemplate

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default: a position without a label


@dataclass(frozen=True)
class ImageLayout:
    """How the tiles of one image lie.

    Attributes:
        grid: Rows and columns of tiles; (1, 1) for an image that became one square tile.
        size: Height and width of the original picture, in pixels.
    """

    grid: tuple[int, int]
    size: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """Tiles that this image occupies in the batch."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TokensPerTile:
    """Image tokens of a picture as a function of its layout, as a value that worker processes can be sent."""

    count: int

    def __call__(self, layout: ImageLayout) -> int:
        """So many for each tile."""
        return layout.num_tiles * self.count


ResizeMode = Literal["squash", "crop", "pad", "letterbox"]


@dataclass(frozen=True)
class ImagePolicy:
    """How a picture becomes square tiles.

    Attributes:
        size: Side of a tile, in pixels.
        mode: squash (ignore the aspect ratio), crop (short side to `short_side`, center crop), pad (to a square of `fill`,
            then resize), or letterbox (equal borders of `fill` on both sides, so that an odd difference leaves a pixel, then crop, as in Prismatic).
        resample: Filter of the resize, by PIL's name.
        fill: RGB color of the padding, 0 to 255.
        reduced_jpeg: Decode JPEG files at a fraction of their size where that is still above what it is resized to: faster, and the pixels differ slightly.
        short_side: Of crop, what the short side is resized to before the cut, at least `size`; None for `size`.
        half_pixel: Of crop, where the cut begins if the margins are not whole pixels: `down` rounds the first one down, as transformers does, `even` rounds
            to an even number, as torchvision does, and with it open_clip and timm.
    """

    size: int
    mode: ResizeMode = "squash"
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    fill: tuple[int, int, int] = (127, 127, 127)
    reduced_jpeg: bool = False
    short_side: int | None = None
    half_pixel: Literal["down", "even"] = "down"


@dataclass(frozen=True)
class Documents:
    """Who sees whom in a batch of rows: a token attends to earlier tokens of its own document only.

    Attributes:
        starts: Cumulative document lengths over the flattened rows, as varlen attention kernels take them. A row border is always a document border:
            padding belongs to the document of its row where each row is one, and is one of its own where rows are packed.
        positions: Position of each token in its conversation, from 0; the first token of a branch follows its prefix.
        prefix: For message trees, the document whose tokens document i sees as well, or -1; None where no document has one.
        hidden: Tokens that no token attends to, not even themselves; None where there are none. Only where every row is one document.
    """

    starts: Int[Tensor, " documents_plus_1"]
    positions: Int[Tensor, "B T"]
    prefix: Int[Tensor, " documents"] | None = None
    hidden: Bool[Tensor, "B T"] | None = None

    @classmethod
    def one_per_row(cls, rows: int, length: int, *, device: torch.device | str = "cpu") -> "Documents":
        """Rows of one document each, right padding included."""
        positions = torch.arange(length, device=device).expand(rows, length)
        return cls(starts=torch.arange(0, rows * length + 1, length, device=device), positions=positions)

    @property
    def is_one_per_row(self) -> bool:
        """True if every row is a single document, so that plain causal attention is exact."""
        return self.prefix is None and len(self.starts) - 1 == self.positions.shape[0]

    def predecessors(self) -> Int[Tensor, " tokens"]:
        """For each position of the flattened rows, the position whose hidden state predicts it.

        That is the one before it in its document; for the first of a branch, the last of its prefix; -1 for the first of a document that has none.
        """
        before = torch.arange(-1, self.positions.numel() - 1, device=self.positions.device)
        first = self.starts[:-1]
        if self.prefix is None:
            before[first] = -1
        else:
            before[first] = torch.where(self.prefix >= 0, self.starts[self.prefix + 1] - 1, -1)
        return before


@dataclass(frozen=True)
class ChatBatch:
    """Conversations with their images, ready for the device.

    Attributes:
        ids: Token ids; image-token ids mark where image features go.
        labels: `ids` where the loss looks, IGNORE_INDEX elsewhere; not shifted.
        documents: Borders of the conversations in the rows.
        pixels: Tiles in the order of their placeholders, RGB, 0 to 255.
        num_samples: Conversations in the batch.
        num_padding: Slots of `ids` that hold no token of a conversation.
        num_truncated: Conversations of which turns or tokens were left out, because they are too long.
        sources: Number of the source of each document; None where all are from one.
        samples_by_source: Conversations from each source; empty where all are from one.
        position: Where the stream of rows goes on after the step that this batch belongs to: epoch, window, row. Empty outside of training.
        samples: Number of each conversation in its data. Empty outside of training.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    documents: Documents
    pixels: UInt8[Tensor, "N 3 H W"]
    num_samples: int
    num_padding: int = 0
    num_truncated: int = 0
    sources: Int[Tensor, " documents"] | None = None
    samples_by_source: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()

    @cached_property
    def targets(self) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """The positions of the flattened rows that the loss predicts, and for each the position whose hidden state predicts it.

        A labelled token that nothing predicts, the first of its conversation, is not among them.
        """
        labelled = (self.labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        before = self.documents.predecessors()[labelled]
        return labelled[before >= 0], before[before >= 0]

    @property
    def num_labels(self) -> int:
        """Tokens that the loss counts."""
        return len(self.targets[0])

    def counts(self) -> dict[str, int]:
        """What the metrics of a step are made of: slots, tokens, images, samples, truncated."""
        slots = self.ids.numel()
        return {
            "slots": slots,
            "tokens": slots - self.num_padding,
            "images": len(self.pixels),
            "samples": self.num_samples,
            "truncated": self.num_truncated,
        }

    def to(self, device: torch.device | str) -> "ChatBatch":
        """The same batch on another device."""
        return _tensors_to(self, device)


@runtime_checkable
class TrainBatch(Protocol):
    """What the training loop knows of a batch; see `ChatBatch`."""

    @property
    def position(self) -> tuple[int, ...]:
        """Where the stream goes on after the step that this batch belongs to."""
        ...

    @property
    def samples(self) -> tuple[int, ...]:
        """Number of each sample in its data."""
        ...

    @property
    def samples_by_source(self) -> tuple[int, ...]:
        """Samples from each source of a mixture; empty where all are from one."""
        ...

    @property
    def num_labels(self) -> int:
        """What the mean loss is a mean over."""
        ...

    def counts(self) -> dict[str, int]:
        """Sizes by name, of which the metrics of a step are made; the same names in every batch of a run."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """The same batch on another device."""
        ...


def _tensors_to(value: Any, device: torch.device | str) -> Any:
    moved: dict[str, Any] = {}
    for field in fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            item = item.to(device, non_blocking=True)
        elif isinstance(item, Documents):
            item = _tensors_to(item, device)
        moved[field.name] = item
    return type(value)(**moved)


class LossSum(NamedTuple):
    """A loss as sum and count, so that accumulation and world size cannot change the mean.

    Attributes:
        sum: Sum over the labelled tokens; its gradient is what training follows.
        count: Number of labelled tokens.
        by_source: Sum and count of each source of a mixture, without gradient; None where all data is from one.
    """

    sum: Float[Tensor, ""]
    count: Int[Tensor, ""]
    by_source: Float[Tensor, "sources 2"] | None = None


@dataclass(frozen=True)
class World:
    """The processes of this run, made once in the command and passed down."""

    rank: int
    size: int
    device: torch.device
    ranks_per_node: int = 1

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> "World":
        """A run of one process."""
        return cls(rank=0, size=1, device=torch.device(device))

    @property
    def is_main(self) -> bool:
        """True on the process that prints and writes."""
        return self.rank == 0


# The protocols declare __call__, not forward: hooks of FSDP2 and of checkpointing run on calls.


@runtime_checkable
class VisionBackbone(Protocol):
    """Pixels to patch features. Normalizes inside, in fp32."""

    width: int
    image_size: int
    num_patches: int

    def __call__(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Patch features of the chosen layer, for a connector."""
        ...

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """One vector an image: the joint-space or CLS vector."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """What FSDP2 shards and checkpointing wraps."""
        ...


@runtime_checkable
class Connector(Protocol):
    """Patch features to language-model embeddings."""

    def __call__(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N K E"]:
        """K embeddings for each tile."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model over embeddings, with its tokenizer and chat template."""

    width: int
    max_length: int
    tokenizer: Any  # transformers.PreTrainedTokenizerBase; named in words so that this file imports no transformers
    template: ChatTemplate

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Input embeddings; ids outside the table are the caller's mistake."""
        ...

    def __call__(self, embeds: Float[Tensor, "B T E"], documents: Documents, *, needed: Int[Tensor, " M"] | None = None) -> Float[Tensor, "B T E"]:
        """Final hidden states; with `needed`, places in the flattened rows, of use there alone."""
        ...

    def logits(self, hidden: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Scores of the next token, for the rows that need them."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """What FSDP2 shards and checkpointing wraps."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to vectors, for the contrastive models."""

    width: int

    def encode(self, texts: Sequence[str], *, instruction: str = "") -> Float[Tensor, "B E"]:
        """One vector a text, not normalized."""
        ...

    def describe(self, *, instruction: str = "") -> dict[str, object]:
        """All that changes the vectors but the values of the weights: source, adapters, template, pooling, instruction, lengths, type, tokenizer."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """What FSDP2 shards and checkpointing wraps."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Pixels to vectors, for the contrastive models. Normalizes pixels inside, in fp32."""

    width: int
    image_policy: ImagePolicy

    def __call__(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """One vector an image, not normalized; pictures become pixels by `image_policy`."""
        ...

    def describe(self) -> dict[str, object]:
        """All that changes the vectors: source, weights, image policy, pooling, type."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """What FSDP2 shards and checkpointing wraps."""
        ...

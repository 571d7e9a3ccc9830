"""Pairs of an image and a caption in batches: cached vectors, in an order that is a pure function of seed, epoch and batch. Knows no model and no cache.

A batch holds an image at most once, with one of its captions, so that no caption of an image can be taken for a negative of it. An epoch goes through the
shuffled images once; those that do not fill its last batch are left out, others in each epoch. An image's captions take turns, in a random order of its
own: it gives each once before any comes again. Ranks take stretches of the same global batch.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.data.stream.order import START, Position
from vlm.data.stream.shuffle import MULTIPLIER, Shuffle, mix
from vlm.errors import ConfigError, DataFormatError

IMAGES, CAPTIONS, TEXTS = range(3)  # what tells the permutations of a seed apart

Batch = TypeVar("Batch", "TextBatch", "PairBatch")


@runtime_checkable
class Rows(Protocol):
    """Vectors that are looked up by number, such as a feature cache."""

    def rows(self, indices: Int[np.ndarray, " B"]) -> Float[Tensor, "B D"]:
        """The vectors of some rows, in that order."""
        ...


@dataclass(frozen=True)
class TextBatch:
    """Texts without images, for distillation.

    Attributes:
        text: Vectors of the text encoder.
        teacher: Vectors of the same texts by the teacher.
        samples: Number of each text.
    """

    text: Float[Tensor, "F E"]
    teacher: Float[Tensor, "F J"]
    samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairBatch:
    """Images with a caption each, and texts without images where there are some.

    Attributes:
        image: Vectors of the image encoder.
        text: Vectors of the captions by the text encoder.
        image_ids: Which image each pair is of; no two of a global batch are equal.
        teacher: Vectors of the captions by the teacher; None without distillation.
        texts: Texts without images.
        position: Where the stream goes on after the step that this batch belongs to: epoch, batch, 0.
        samples: Number of each caption.
    """

    image: Float[Tensor, "B I"]
    text: Float[Tensor, "B E"]
    image_ids: Int[Tensor, " B"]
    teacher: Float[Tensor, "B J"] | None = None
    texts: TextBatch | None = None
    position: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()

    @property
    def samples_by_source(self) -> tuple[int, ...]:
        """Empty: pairs are from one source."""
        return ()

    def counts(self) -> dict[str, int]:
        """What the metrics of a step are made of: pairs, and texts without images."""
        return {"pairs": len(self.image), "texts": len(self.text) + (0 if self.texts is None else len(self.texts.text)), "samples": len(self.image)}

    @property
    def num_labels(self) -> int:
        """What the loss counts: pairs."""
        return len(self.image)

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch on another device."""
        return _each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))


def _each_tensor(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    changed |= {name: _each_tensor(value, change) for name, value in values.items() if isinstance(value, TextBatch)}
    return replace(batch, **changed)


@dataclass(frozen=True)
class Captions:
    """Which captions are of which image.

    Attributes:
        images: Row of each image that has a caption, ascending, shape [images].
        starts: Where the captions of each image start in `texts`, and the last ends, shape [images + 1].
        texts: Row of each caption, image by image, shape [captions].
    """

    images: np.ndarray
    starts: np.ndarray
    texts: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, texts: np.ndarray) -> "Captions":
        """Group pairs by image.

        Args:
            images: Row of the image of each pair.
            texts: Row of the caption of each pair; captions with the same words may have one row.

        Raises:
            DataFormatError: If there is no pair, or not as many images as texts.
        """
        if len(images) != len(texts) or not len(images):
            raise DataFormatError(f"Pairs are an image and a caption each, and at least one; got {len(images):,} images and {len(texts):,} captions.")
        order = np.argsort(images, kind="stable")
        rows, starts = np.unique(images[order], return_index=True)
        return cls(rows.astype(np.int64), np.append(starts, len(images)), texts[order].astype(np.int64))

    def __len__(self) -> int:
        """Images."""
        return len(self.images)


@dataclass(frozen=True)
class PairOrder:
    """Which image and which of its captions stand where.

    Attributes:
        captions: The pairs.
        batch: Pairs of a global batch.
        seed: Seed of the order of the images and of their captions.
    """

    captions: Captions
    batch: int
    seed: int

    def __post_init__(self) -> None:
        refuse_batch(self.batch, len(self.captions))

    @property
    def batches_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return len(self.captions) // self.batch

    def draw(self, epoch: int, number: int) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """Rows of the images and of the captions of a global batch."""
        places = np.arange(number * self.batch, (number + 1) * self.batch)
        chosen = Shuffle(len(self.captions), self.seed, IMAGES)(places, epoch)
        first = self.captions.starts[chosen]
        return self.captions.images[chosen], self.captions.texts[first + self._turns(epoch, chosen, self.captions.starts[chosen + 1] - first)]

    def _turns(self, epoch: int, chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Which of its captions each image shows in an epoch."""
        turns = np.zeros_like(chosen)
        key = np.random.SeedSequence([self.seed, CAPTIONS]).generate_state(1, np.uint64)
        for count in np.unique(counts[counts > 1]).tolist():
            mine = counts == count
            cycle, turn = divmod(epoch, count)
            state = mix((chosen[mine] + cycle * len(self.captions)).astype(np.uint64) ^ key)  # of splitmix64: random numbers of this image and cycle
            keys = mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * MULTIPLIER)
            turns[mine] = keys.argsort(axis=1)[:, turn]
        return turns

    def digest(self) -> str:
        """A hash of the pairs and of all that their order depends on."""
        digest = hashlib.sha256(f"{self.batch} {self.seed}".encode())
        for array in (self.captions.images, self.captions.starts, self.captions.texts):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()


def refuse_batch(batch: int, num_images: int) -> None:
    """Make sure that there are batches.

    Raises:
        ConfigError: If a batch holds a single pair, or more than there are images.
    """
    if batch < 2:
        raise ConfigError(f"--stage.global-batch-size is {batch}; a contrastive loss compares at least 2 pairs.")
    if batch > num_images:
        raise ConfigError(
            f"--stage.global-batch-size is {batch:,}, and the data has {num_images:,} images. A batch holds an image once, because captions of one "
            f"image must not be negatives of each other. Lower it to {num_images:,} or less."
        )


@dataclass(frozen=True)
class TextOrder:
    """Which texts without images stand where: all once an epoch of their own, but those that do not fill its last batch.

    Attributes:
        count: Number of texts.
        batch: Texts of a global batch.
        seed: Seed of their order.
    """

    count: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.batch <= self.count:
            raise ConfigError(
                f"A batch is to hold {self.batch:,} texts without images, and there are {self.count:,}. Ask for 1 to {self.count:,}, or add texts."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self.count // self.batch

    def draw(self, epoch: int, number: int) -> Int[np.ndarray, " B"]:
        """Rows of the texts of a global batch."""
        return Shuffle(self.count, self.seed, TEXTS)(np.arange(number * self.batch, (number + 1) * self.batch), epoch)

    def digest(self) -> str:
        """A hash of all that the order depends on."""
        return hashlib.sha256(f"{self.count} {self.batch} {self.seed}".encode()).hexdigest()


def count_batches(order: PairOrder | TextOrder, epochs: float) -> int:
    """Steps of so many epochs, at least 1."""
    return steps_of(order.batches_per_epoch, epochs)


def steps_of(batches_per_epoch: int, epochs: float) -> int:
    """Steps of so many epochs of so many batches, at least 1."""
    return max(1, math.ceil(batches_per_epoch * epochs - 1e-9))


def refuse_accumulation(batch: int, per_device: int, world: int) -> None:
    """Make sure that what a device is to hold at once is its whole share of the global batch.

    Args:
        batch: Pairs of a global batch.
        per_device: Pairs that a device is to hold at once.
        world: Devices.

    Raises:
        ConfigError: If it is less, so that the batch would be cut into micro-batches, or more than there is.
    """
    together = per_device * world
    asked = f"--stage.per-device-batch-size {per_device:,} on {world} device(s)"
    if together < batch:
        raise ConfigError(
            f"{asked} would cut --stage.global-batch-size {batch:,} into micro-batches, but the batch is part of the contrastive loss: every pair is compared with "
            "all others at once. Leave it out. Cached vectors need little memory: raise --stage.global-batch-size rather than accumulate."
        )
    if together > batch:
        raise ConfigError(
            f"{asked} is {together:,} pairs, more than --stage.global-batch-size {batch:,}. Leave it out, or raise that to {together:,}."
        )


@dataclass(frozen=True)
class FreeTexts:
    """Texts without images, their teacher's vectors, and their order; both are looked up by the same numbers."""

    text: Rows
    teacher: Rows
    order: TextOrder

    def batch(self, epoch: int, number: int, share: Callable[[np.ndarray], np.ndarray]) -> TextBatch:
        """A rank's share of a global batch."""
        rows = share(self.order.draw(epoch, number))
        return TextBatch(self.text.rows(rows), self.teacher.rows(rows), samples=tuple(rows.tolist()))


@dataclass(frozen=True)
class PairLoader:
    """Batches of one rank, each read while the one before it is used.

    Attributes:
        image: Vectors of the images.
        text: Vectors of the captions.
        order: Which of them stand where.
        teacher: Vectors of the captions by the teacher, by the same numbers; None without distillation.
        texts: Texts without images that come with each batch; their epochs are their own.
        world: Ranks of the run.
        rank: This one.
        num_steps: Steps to yield.
        start: Where the stream begins: `position` of the last batch that was used.
        pin_memory: Copy batches into page-locked memory, for faster transfers to CUDA.
    """

    image: Rows
    text: Rows
    order: PairOrder
    teacher: Rows | None = None
    texts: FreeTexts | None = None
    world: int = 1
    rank: int = 0
    num_steps: int = 0
    start: Position = START
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for order in (self.order, *([] if self.texts is None else [self.texts.order])):
            refuse_uneven(order.batch, self.world)

    def __len__(self) -> int:
        """Number of batches."""
        return self.num_steps

    def __iter__(self) -> Iterator[PairBatch]:
        """Batches in order."""
        places = _places(self.order.batches_per_epoch, self.start, self.num_steps)
        return _ahead(lambda place: self._read(*place), places, pin_memory=self.pin_memory)

    def _read(self, epoch: int, number: int, position: Position) -> PairBatch:
        images, captions = (_share(rows, self.rank, self.world) for rows in self.order.draw(epoch, number))
        return PairBatch(
            image=self.image.rows(images),
            text=self.text.rows(captions),
            image_ids=torch.from_numpy(images),
            teacher=None if self.teacher is None else self.teacher.rows(captions),
            texts=self._free(epoch * self.order.batches_per_epoch + number),
            position=tuple(position),
            samples=tuple(captions.tolist()),
        )

    def _free(self, step: int) -> TextBatch | None:
        if self.texts is None:
            return None
        return self.texts.batch(*divmod(step, self.texts.order.batches_per_epoch), lambda rows: _share(rows, self.rank, self.world))


def _places(batches_per_epoch: int, start: Position, num_steps: int) -> Iterator[tuple[int, int, Position]]:
    """Epoch and number of each batch, and the position after it."""
    first = start.epoch * batches_per_epoch + start.window
    for step in range(first, first + num_steps):
        yield *divmod(step, batches_per_epoch), Position(*divmod(step + 1, batches_per_epoch))


def _share(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


def refuse_uneven(batch: int, world: int) -> None:
    """Make sure that ranks can share a global batch.

    Raises:
        ConfigError: If it cannot be cut evenly; the nearest sizes that can are named.
    """
    if batch % world:
        near = sorted({max(world, batch // world * world), -(-batch // world) * world})
        raise ConfigError(
            f"A global batch of {batch:,} cannot be cut evenly for {world} devices. Take {' or '.join(f'{size:,}' for size in near)}. "
            "--stage.global-batch-size is part of the loss and never cut into micro-batches: cached vectors need little memory, raise it rather than accumulate."
        )


def _ahead(read: Callable[[Any], PairBatch], places: Iterable[Any], *, pin_memory: bool) -> Iterator[PairBatch]:
    """Batches in order, the next one read by a thread."""

    def made(place: Any) -> PairBatch:
        batch = read(place)
        return _each_tensor(batch, Tensor.pin_memory) if pin_memory else batch

    with ThreadPoolExecutor(1) as thread:
        coming: deque = deque()
        for place in places:
            coming.append(thread.submit(made, place))
            if len(coming) > 1:
                yield coming.popleft().result()
        for future in coming:
            yield future.result()

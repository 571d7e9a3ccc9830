"""Samples to a stream of batches in a fixed order. Knows the model only as a chat template, a tokenizer, an image policy and a token count.

The order of samples is a function of the seed alone: world size, micro-batches and workers only cut it differently.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from vlm.conf.schema import BatchPlan
from vlm.data.chat import check_template, encode_chat
from vlm.data.collate import Example, collate
from vlm.data.image import load_tiles
from vlm.data.sample import Sample
from vlm.errors import DataFormatError, VLMError
from vlm.messages import ChatTemplate
from vlm.types import ChatBatch, ImageLayout, ImagePolicy


class ChatExamples:
    """Samples, encoded when they are asked for; a map-style dataset of torch."""

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
    ):
        """Remember how samples become examples.

        Args:
            samples: The samples.
            template: Chat template.
            tokenizer: Fast tokenizer with an `<image>` token.
            image_token_id: Id of that token.
            policy: How pictures become tiles.
            tokens_per_image: Image tokens of a picture, from its layout.
            max_length: Longest conversation in tokens, image tokens included.

        Raises:
            ConfigError: If template and tokenizer do not fit.
        """
        check_template(template, tokenizer)
        self.samples, self.template, self.tokenizer, self.image_token_id = samples, template, tokenizer, image_token_id
        self.policy, self.tokens_per_image, self.max_length = policy, tokens_per_image, max_length

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
            DataFormatError: If a picture cannot be read, placeholders and pictures differ in number, or the conversation is too long.
            ConfigError: If a token crosses the border of an answer.
        """
        sample = self.samples[index]
        tiled = [load_tiles(path, self.policy) for path in sample.images]
        encoded = encode_chat(
            sample.messages,
            template=self.template,
            tokenizer=self.tokenizer,
            image_token_id=self.image_token_id,
            tokens_per_image=[self.tokens_per_image(layout) for _, layout in tiled],
        )
        if len(encoded.ids) > self.max_length:
            raise DataFormatError(
                f"Sample {sample.id!r} has {len(encoded.ids)} tokens, the longest allowed is {self.max_length}. "
                "Raise --stage.max-length if the language model's context allows it, or shorten or remove the sample."
            )
        no_tiles = torch.zeros(0, 3, self.policy.size, self.policy.size, dtype=torch.uint8)
        return Example(sample.id, encoded.ids, encoded.labels, torch.cat([no_tiles, *(tiles for tiles, _ in tiled)]))

    @property
    def pad_id(self) -> int:
        """Id that fills rows up; never seen by attention or loss."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in known if token is not None)


@dataclass(frozen=True)
class OrderedBatches:
    """Indices of the micro-batches of one rank, for `DataLoader(batch_sampler=...)`.

    The stream of samples is one seeded permutation after another; step s is the stream's positions s * G to (s + 1) * G. Ranks take contiguous
    slices of a step and cut them into micro-batches. So nothing is dropped, and every rank yields equally many micro-batches.

    Attributes:
        num_samples: Samples in the dataset, at least 1; may be fewer than a batch.
        global_batch_size: G, samples a step; a multiple of per_device * world_size (see `BatchPlan`).
        per_device: Samples a micro-batch.
        world_rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the order, not negative.
        start_step: First step to yield.
        num_steps: Steps of the whole run; the last one yielded is num_steps - 1.
    """

    num_samples: int
    global_batch_size: int
    per_device: int
    world_rank: int
    world_size: int
    seed: int
    start_step: int
    num_steps: int

    def __post_init__(self) -> None:
        unit = self.per_device * self.world_size
        if self.num_samples < 1 or self.global_batch_size % unit:
            raise ValueError(f"Need at least 1 sample and a global batch that {unit} divides; got {self.num_samples} and {self.global_batch_size}.")

    def __len__(self) -> int:
        """Number of micro-batches."""
        return max(0, self.num_steps - self.start_step) * (self.global_batch_size // (self.per_device * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Micro-batches in order."""
        share = self.global_batch_size // self.world_size
        order = _Order(self.num_samples, self.seed)
        for step in range(self.start_step, self.num_steps):
            first = step * self.global_batch_size + self.world_rank * share
            for start in range(first, first + share, self.per_device):
                yield [order.at(position) for position in range(start, start + self.per_device)]


class _Order:
    """The stream of samples: which sample stands at a position."""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return int(self._permutation[place])


class ChatLoader:
    """A torch DataLoader whose workers' errors arrive as they were raised, on one line."""

    def __init__(self, loader: DataLoader):
        """Wrap a loader of `make_loader`."""
        self.loader = loader

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[ChatBatch]:
        """Micro-batches in order.

        Raises:
            DataFormatError: If a sample of the batch cannot be used.
        """
        for result in self.loader:
            if isinstance(result.value, str):
                raise DataFormatError(result.value)
            yield result.value


def make_loader(
    examples: ChatExamples,
    *,
    plan: BatchPlan,
    rank: int = 0,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> ChatLoader:
    """This rank's micro-batches, `plan.accumulation` for each step.

    Args:
        examples: The data.
        plan: How a global batch is cut.
        rank: Rank of this process, below `plan.world`.
        seed: Seed of the order of samples.
        num_steps: Steps of the whole run.
        start_step: First step to yield.
        num_workers: Processes that decode and encode; 0: this one.
        pin_memory: Copy batches into page-locked memory, for faster transfers to CUDA.
    """
    if num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers library must know before it is forked
    batches = OrderedBatches(
        num_samples=len(examples),
        global_batch_size=plan.world * plan.per_device * plan.accumulation,
        per_device=plan.per_device,
        world_rank=rank,
        world_size=plan.world,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
    )
    loader = DataLoader(
        _Guarded(examples),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=partial(_collate, pad_id=examples.pad_id),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    return ChatLoader(loader)


@dataclass(frozen=True)
class _Result:
    """A batch, or why there is none: exceptions that cross processes arrive with another process's traceback as their text."""

    value: ChatBatch | str

    def pin_memory(self) -> "_Result":
        """Called by torch's pinning thread."""
        if isinstance(self.value, str):
            return self
        pinned = {name: getattr(self.value, name).pin_memory() for name in ("ids", "labels", "pixels")}
        return replace(self, value=replace(self.value, **pinned))


@dataclass(frozen=True)
class _Guarded:
    """Examples, with the errors that a user can cause as values."""

    examples: ChatExamples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | VLMError:
        try:
            return self.examples[index]
        except VLMError as error:
            return error


def _collate(examples: Sequence[Example | VLMError], *, pad_id: int) -> _Result:
    for example in examples:
        if isinstance(example, VLMError):
            return _Result(str(example))
    return _Result(collate([example for example in examples if isinstance(example, Example)], pad_id=pad_id))

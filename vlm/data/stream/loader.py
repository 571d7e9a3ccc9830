"""A stream of batches in a fixed order, decoded by worker processes. Knows no model.

Which rows there are and in which order is `vlm.data.stream.order`'s; world size, micro-batches and workers only cut the stream differently.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader

from vlm.conf.schema import BatchPlan
from vlm.data.stream.collate import collate
from vlm.data.stream.examples import ChatExamples, Failure, guarded
from vlm.data.stream.order import START, Position, Row, RowOrder
from vlm.errors import DataFormatError
from vlm.types import ChatBatch


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one micro-batch, and where the stream goes on after the step that they belong to."""

    rows: tuple[Row, ...]
    position: Position


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one rank, for `DataLoader(sampler=...)`.

    A step takes as many rows of the stream as the global batch has. Its first micro-batches, one for each rank, are the first rows, and so on, so that
    ranks work on rows of similar length where the stream is sorted. Nothing is dropped, and every rank yields equally many micro-batches.

    Attributes:
        order: The stream of rows.
        plan: How a global batch is cut.
        rank: Rank of this process.
        num_steps: Steps to yield.
        start: Where the stream begins.
    """

    order: RowOrder
    plan: BatchPlan
    rank: int
    num_steps: int
    start: Position = START

    def __len__(self) -> int:
        """Number of micro-batches."""
        return self.num_steps * self.plan.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        """Micro-batches in order."""
        stream, size = self.order.stream(self.start), self.plan.per_device
        for _ in range(self.num_steps):
            step = [next(stream) for _ in range(self.plan.world * size * self.plan.accumulation)]
            rows, position = [row for row, _ in step], step[-1][1]
            for i in range(self.plan.accumulation):
                first = (i * self.plan.world + self.rank) * size
                yield MicroBatch(tuple(rows[first : first + size]), position)


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
            VLMError: If a sample of the batch cannot be used.
        """
        for made in self.loader:
            if isinstance(made.value, Failure):
                raise made.value.error()
            yield made.value


def make_loader(
    examples: ChatExamples,
    order: RowOrder,
    *,
    plan: BatchPlan,
    rank: int = 0,
    num_steps: int,
    start: Position = START,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> ChatLoader:
    """This rank's micro-batches, `plan.accumulation` for each step.

    Args:
        examples: The data.
        order: Which rows there are, and in which order.
        plan: How a global batch of rows is cut.
        rank: Rank of this process, below `plan.world`.
        num_steps: Steps to yield.
        start: Where the stream begins: `ChatBatch.position` of the last step that was used.
        num_workers: Processes that decode and encode; 0: this one.
        pin_memory: Copy batches into page-locked memory, for faster transfers to CUDA.
    """
    if num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers library must know before it is forked
    loader = DataLoader(
        _Maker(examples, order.capacity),  # type: ignore[arg-type]
        sampler=MicroBatches(order, plan, rank, num_steps, start),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_outlive_stop_signals,
    )
    return ChatLoader(loader)


@dataclass(frozen=True)
class _Made:
    """A batch, or why there is none."""

    value: ChatBatch | Failure

    def pin_memory(self) -> "_Made":
        """Called by torch's pinning thread."""
        if isinstance(self.value, Failure):
            return self
        pinned = {name: getattr(self.value, name).pin_memory() for name in ("ids", "labels", "pixels")}
        return replace(self, value=replace(self.value, **pinned))


@dataclass(frozen=True)
class _Maker:
    """Micro-batches of indices to batches, as a map-style dataset of torch."""

    examples: ChatExamples
    capacity: int | None

    def __getitem__(self, micro_batch: MicroBatch) -> _Made:
        return _Made(guarded(lambda: self._make(micro_batch)))

    def _make(self, micro_batch: MicroBatch) -> ChatBatch:
        rows = [[self.examples.tree(tree) for tree in row] for row in micro_batch.rows]
        batch = collate(rows, pad_id=self.examples.pad_id, num_sources=self.examples.num_sources)
        if self.capacity is not None and batch.ids.shape[1] > self.capacity:
            raise DataFormatError(
                f"A row of samples {', '.join(example.id for tree in rows[0] for example in tree.examples)} ... has {batch.ids.shape[1]} tokens, planned were "
                f"{self.capacity} at most: the data has changed since its lengths were counted. Delete the lengths-*.npy beside the data."
            )
        samples = tuple(sample for row in micro_batch.rows for tree in row for sample in tree)
        return replace(batch, position=tuple(micro_batch.position), samples=samples)


def _outlive_stop_signals(worker: int) -> None:
    """Schedulers signal every process of a job; a run that wants to save first needs its workers for that step. They end with the run."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(made: Any) -> Any:
    return made

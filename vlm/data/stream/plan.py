"""From a stage's settings to the order of its rows: counts tokens where that is needed, groups conversations that share pictures, sets the mixture.

The result is the same on every rank; the main one should come first, so that the others find what it counted.
"""

import logging
from functools import partial

import numpy as np

from vlm.conf.schema import StageConfig
from vlm.data.reader import SampleSet
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.lengths import Lengths, Progress, measure
from vlm.data.stream.mixture import Draws, draws_an_epoch
from vlm.data.stream.order import Arrange, RowOrder, Units, grouped, one_a_row, packed
from vlm.errors import DataFormatError

log = logging.getLogger(__name__)

DESCRIBED_WINDOWS = 8  # windows whose packing is described


def plan_order(
    stage: StageConfig, samples: SampleSet, examples: ChatExamples, *, seed: int, num_workers: int = 0, progress: Progress | None = None
) -> RowOrder:
    """The order of a stage's rows.

    Args:
        stage: Mixture, packing, grouping, batch size.
        samples: The opened data.
        examples: How samples become tokens.
        seed: Seed of the order.
        num_workers: Processes that count tokens; 0: this one.
        progress: Shows how far the counting of tokens is.

    Raises:
        DataFormatError: If a sample cannot be used, unless the stage skips such samples.
        ConfigError: If a share of the mixture is too small.
    """
    if not needs_lengths(stage, samples):
        draws = Draws(samples.sizes, draws_an_epoch(samples.entries, samples.sizes), seed)
        return RowOrder(Units(len(samples)), draws, one_a_row, capacity=None, seed=seed)
    lengths = measure(samples, examples, skip=stage.on_bad_row == "skip", num_workers=num_workers, progress=progress)
    units = trees_of(lengths, capacity=stage.pack_length or examples.max_length) if stage.share_images else singles(lengths)
    sizes = _units_of_sources(units, lengths, samples)
    weights = _mean_tokens(units, sizes) if stage.mixture_by == "tokens" else None
    draws = Draws(sizes, draws_an_epoch(samples.entries, sizes, weights=weights), seed)
    return RowOrder(units, draws, _arrangement(stage, units), capacity=stage.pack_length, seed=seed)


def needs_lengths(stage: StageConfig, samples: SampleSet) -> bool:
    """True if the order depends on how many tokens the samples have, or on which of them can be used at all."""
    by_tokens = stage.mixture_by == "tokens" and samples.entries[0].share is not None
    return stage.pack_length is not None or stage.group_by_length or stage.share_images or by_tokens or stage.on_bad_row == "skip"


def describe(order: RowOrder, stage: StageConfig, samples: SampleSet) -> list[str]:
    """What the order does, in a line for each source of a mixture and one for packing."""
    said = []
    if len(samples.entries) > 1:
        for entry, size, count in zip(samples.entries, order.draws.sizes, order.draws.counts, strict=True):
            said.append(f"  {entry.name}: {count / len(order.draws):.1%} of an epoch's draws, {count / size:.2f} passes")
    if stage.pack_length is not None and order.units.lengths is not None:
        rows = [row for window in range(min(DESCRIBED_WINDOWS, order.num_windows)) for row in order.plan(0, window)]
        units = [unit for row in rows for unit in row]
        full = int(order.units.lengths[units].sum()) / (len(rows) * stage.pack_length)
        conversations = sum(len(order.units.tree(unit)) for unit in units)
        said.append(
            f"  packing: {full:.1%} of the slots hold tokens, {conversations / len(rows):.1f} conversations in a row of {stage.pack_length:,} tokens"
        )
    if order.units.alone and order.units.lengths is not None:
        saving = order.units.alone / int(order.units.lengths.sum())
        fewer = f"{saving:.2f} times fewer tokens than with a row for each conversation"
        said.append(f"  shared pictures: {fewer}" if saving > 1 else "  shared pictures: none, every picture has one conversation")
    return said


def trees_of(lengths: Lengths, *, capacity: int) -> Units:
    """Samples with the same pictures and first tokens as units of up to `capacity` tokens; every other sample is a unit of its own."""
    samples = np.argsort(lengths.group, kind="stable")
    samples = samples[lengths.total[samples] > 0]
    own = (lengths.total - lengths.shared)[samples].astype(np.int64)
    shared, group = lengths.shared[samples], lengths.group[samples]
    begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    ends = np.r_[begins[1:], len(samples)]
    running = np.r_[0, own.cumsum()]
    large = np.flatnonzero(shared[begins] + running[ends] - running[begins] > capacity)
    extra = [cut for i in large.tolist() for cut in _cuts(own, int(begins[i]), int(ends[i]), capacity - int(shared[begins[i]]))]
    starts = np.sort(np.r_[begins, np.array(extra, dtype=np.int64)])
    sizes = running[np.r_[starts[1:], len(samples)]] - running[starts] + shared[starts]
    trees = (samples, np.r_[starts, len(samples)])
    return Units(len(starts), trees, lengths=sizes, with_images=lengths.images[samples[starts]] > 0, alone=int(lengths.total.sum(dtype=np.int64)))


def _cuts(own: np.ndarray, begin: int, end: int, room: int) -> list[int]:
    """Where a group must be cut so that no piece has more than `room` tokens of its own."""
    cuts, used = [], 0
    for i in range(begin, end):
        if used and used + int(own[i]) > room:
            cuts.append(i)
            used = 0
        used += int(own[i])
    return cuts


def singles(lengths: Lengths) -> Units:
    """Each sample that can be used as a unit of its own."""
    usable = np.flatnonzero(lengths.total)
    if len(usable) == len(lengths.total):
        return Units(len(usable), lengths=lengths.total, with_images=lengths.images > 0)
    trees = (usable, np.arange(len(usable) + 1))
    return Units(len(usable), trees, lengths=lengths.total[usable], with_images=lengths.images[usable] > 0)


def _units_of_sources(units: Units, lengths: Lengths, samples: SampleSet) -> tuple[int, ...]:
    """How many units the samples of each source make; a unit never holds samples of two.

    Raises:
        DataFormatError: If no sample of a source can be used.
    """
    if units.trees is None:
        return samples.sizes
    members, starts = units.trees
    owners = np.maximum.accumulate(lengths.group[members[starts[:-1]]] if units.alone else members)  # ascending; of a tree, its first sample
    sizes = np.diff(np.searchsorted(owners, np.cumsum([0, *samples.sizes]))).tolist()
    if 0 in sizes:
        raise DataFormatError(f"No sample of {samples.entries[sizes.index(0)].name!r} can be used; the reason stands above.")
    return tuple(sizes)


def _mean_tokens(units: Units, sizes: tuple[int, ...]) -> list[float]:
    assert units.lengths is not None
    ends = np.cumsum(sizes)
    return [float(units.lengths[end - size : end].mean()) for end, size in zip(ends.tolist(), sizes, strict=True)]


def _arrangement(stage: StageConfig, units: Units) -> Arrange:
    if units.lengths is None or units.with_images is None:
        return one_a_row
    if stage.pack_length is not None:
        return partial(packed, lengths=units.lengths, capacity=stage.pack_length)
    if stage.group_by_length:
        return partial(grouped, lengths=units.lengths, with_images=units.with_images, batch=stage.global_batch_size)
    return one_a_row

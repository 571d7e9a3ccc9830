"""The training loop: micro-batches to optimizer steps, with the loss normalized over the whole global batch.

Knows the model only as `model(batch) -> LossSum`; data, validation, checkpoints and metrics come as values and callables from the command. What a step
computes is a function of the weights, the optimizer's state, the micro-batches, the seed and the step's number: nothing else needs to be stored to go on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vlm.conf.schema import BatchPlan, Schedule
from vlm.distributed.collectives import any_rank, sum_lists_over_ranks, sum_over_ranks
from vlm.distributed.placement import Placement
from vlm.distributed.shard import exchange_seconds, gradient_exchange, is_finite, spread
from vlm.errors import ConfigError, DataFormatError
from vlm.training.incidents import Incident, MicroBatchLoss, SpikeDetector
from vlm.training.meter import COMMUNICATION, OPTIMIZER, Meter
from vlm.training.optim import clip_by_norm, make_optimizer, norms_by_part, rates_by_part, set_rates
from vlm.types import TrainBatch, World

SPEEDS, AMOUNTS = ("tokens", "images", "pairs", "texts"), ("samples", "truncated")  # of what a batch counts, what is logged as which metric
MOST_SKIPPED_IN_A_ROW = 10  # steps; a run whose every step is broken must not go on for days


@dataclass(frozen=True)
class Trainee:
    """What is trained.

    Attributes:
        model: The assembled model, its frozen parts already frozen.
        wrapped: The same as the ranks run it together.
        optimizer: The optimizer of its trained weights.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.AdamW

    @classmethod
    def of(cls, model: nn.Module, stage: Schedule, world: World, placement: Placement | None = None) -> "Trainee":
        """Spread a model over the ranks, whole on each unless a placement says otherwise, and make its optimizer.

        Raises:
            ConfigError: If a part has a rate but nothing that could be trained.
        """
        wrapped = spread(model, placement or Placement(replicas=world.size), world)
        return cls(model=model, wrapped=wrapped, optimizer=make_optimizer(model, stage))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trained weights."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


@dataclass(frozen=True)
class Steps:
    """Which steps are taken, and how a step is made reproducible.

    Attributes:
        last: Number of the last step; the schedule ends there.
        first: Steps that were taken before, by the run that is resumed.
        seed: Seed of dropout and the like: each step and rank has numbers of its own, wherever the run was interrupted.
    """

    last: int
    first: int = 0
    seed: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first + 1, self.last + 1))


@dataclass(frozen=True)
class Hooks:
    """What happens beside training.

    Attributes:
        log: Takes the step, from 1, and its metrics.
        after_step: Takes the step and where the stream of rows goes on after it; validation and checkpoints.
        wants_stop: Asked before each step; True on any rank ends the loop on all of them.
        incident: Takes a step that went wrong, and returns where it was written down, or nothing.
        watched: What the first forward and backward passes run in.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    after_step: Callable[[int, tuple[int, ...]], None] = lambda step, position: None
    wants_stop: Callable[[], bool] = lambda: False
    incident: Callable[[Incident], str] = lambda incident: ""
    watched: Callable[[], AbstractContextManager] = nullcontext


def count_steps(stage: Schedule, num_rows: int) -> int:
    """Optimizer steps of a stage that goes through so many rows."""
    return stage.max_steps or max(1, math.ceil(num_rows / stage.global_batch_size))


def train(
    trainee: Trainee,
    batches: Iterable[TrainBatch],
    *,
    stage: Schedule,
    plan: BatchPlan,
    steps: Steps,
    world: World,
    autocast: bool,
    hooks: Hooks,
    sources: Sequence[str] = (),
    on_nan: str = "stop",
    meter: Meter | None = None,
) -> list[float]:
    """Take optimizer steps until the last one or until a stop is wanted, and return the mean loss of each step taken.

    Args:
        trainee: The model and its optimizer.
        batches: This rank's micro-batches, `plan.accumulation` for each step, from the first step that is to be taken.
        stage: Rates, schedule and clipping.
        plan: How the global batch is cut.
        steps: Which steps.
        world: The processes of this run.
        autocast: True to run the forward pass under bf16 autocast.
        hooks: What happens beside training.
        sources: Names of the sources of the mixture, for metrics.
        meter: What counts FLOPs; None to report times alone.
        on_nan: `stop`, or `skip`: a step whose loss or gradient is not a number changes no weight, and training goes on.

    Raises:
        DataFormatError: If a global batch has no labelled token.
        ConfigError: If the loss or its gradient is not a number, and the step is not skipped; or too many steps in a row are.
    """
    meter = meter or Meter(None, peak=None, world=world)
    loop = _Loop(trainee, stage, plan, steps, world, autocast=autocast, hooks=hooks, sources=sources, on_nan=on_nan, meter=meter)
    trainee.model.train()
    losses: list[float] = []
    stream = meter.watch(batches)
    for step in steps:
        if any_rank(hooks.wants_stop(), world):
            break
        losses.append(loop.take_step(step, stream))
        trainee.model.train()
    return losses


@dataclass(frozen=True)
class _Step:
    """What the backward passes of a step gave.

    Attributes:
        mean: Mean loss of the global batch.
        losses: Of this rank's micro-batches.
        by_source: This rank's sum and count of each source of a mixture, flat.
    """

    mean: float
    losses: list[MicroBatchLoss]
    by_source: list[float]


@dataclass
class _Loop:
    """What all steps of a run share; see `train`."""

    trainee: Trainee
    stage: Schedule
    plan: BatchPlan
    steps: Steps
    world: World
    autocast: bool
    hooks: Hooks
    sources: Sequence[str]
    on_nan: str
    meter: Meter
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    skipped: int = 0  # steps in a row, up to this one

    def take_step(self, step: int, stream: Iterator[TrainBatch]) -> float:
        """One optimizer step; returns its mean loss."""
        clock = time.perf_counter()
        micro_batches = _take(stream, self.plan.accumulation, self.world.device)
        waited = time.perf_counter() - clock
        seed_step(self.steps.seed, step, self.world.rank)  # after the data: a loader that begins draws a random number
        with self.hooks.watched() if step == self.steps.first + 1 else nullcontext():
            seen = self._accumulate(micro_batches, step)
        set_rates(self.trainee.optimizer, self.stage, step, self.steps.last)
        norms, rates = norms_by_part(self.trainee.optimizer), rates_by_part(self.trainee.optimizer)
        norm = math.hypot(*norms.values())
        broken = self._judge(step, seen, norms, norm)
        with self.meter.span(OPTIMIZER):
            if not broken:
                clip_by_norm(self.trainee.weights, norm, self.stage.clip_norm)
                self.trainee.optimizer.step()
            self.trainee.optimizer.zero_grad(set_to_none=True)
        self.meter.add(COMMUNICATION, exchange_seconds(self.trainee.wrapped))
        seconds = time.perf_counter() - clock
        metrics = _metrics(seen.mean, norm, rates, micro_batches, seconds=seconds, waited=waited, world=self.world)
        metrics |= self.meter.step(seconds) | _source_metrics(self.sources, seen.by_source, micro_batches, self.world)
        self.hooks.log(step, {name: value for name, value in metrics.items() if math.isfinite(value)} | {"num_skipped": 1} if broken else metrics)
        self.hooks.after_step(step, micro_batches[-1].position)
        return seen.mean

    def _accumulate(self, micro_batches: list[TrainBatch], step: int) -> _Step:
        """Backward passes of one global batch.

        Each micro-batch's sum is divided by the labels of the whole global batch, counted over all ranks before the first backward pass, and multiplied
        by the number of ranks, because their gradients are averaged: so neither accumulation nor world size changes the gradient.
        """
        model, world = self.trainee.wrapped, self.world
        labels = [batch.num_labels for batch in micro_batches]
        with self.meter.span(COMMUNICATION):
            count = sum_over_ranks(sum(labels), world)
        if count == 0:
            raise DataFormatError(
                f"Step {step}: no sample of the global batch has a labelled token. Check that the answers of the dataset are not empty."
            )
        sums: list[Tensor] = []
        by_source: list[Tensor] = []
        for i, batch in enumerate(micro_batches):
            with gradient_exchange(model, on=i + 1 == len(micro_batches)):
                with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                    loss = model(batch)
                (loss.sum * (world.size / count)).backward()
            sums.append(loss.sum.detach())
            by_source += [] if loss.by_source is None else [loss.by_source]
        values = [part.item() for part in sums]
        losses = [MicroBatchLoss(value / max(1, n), batch.samples) for value, n, batch in zip(values, labels, micro_batches, strict=True)]
        mean = sum_over_ranks(sum(values), world) / count
        return _Step(mean, losses, torch.stack(by_source).sum(0).flatten().tolist() if by_source else [])

    def _judge(self, step: int, seen: _Step, norms: Mapping[str, float], norm: float) -> bool:
        """Write down a step that went wrong; True if it must change no weight."""
        kind = "nan" if not math.isfinite(seen.mean + norm) else "spike" if self.spikes.sees(seen.mean) else ""
        place = self.hooks.incident(Incident(step, kind, seen.mean, norms, seen.losses)) if kind else ""
        if kind != "nan":
            self.skipped = 0
            return False
        self.skipped += 1
        skips = self.on_nan == "skip"
        if skips and self.skipped <= MOST_SKIPPED_IN_A_ROW:
            return True
        what, value = ("loss", seen.mean) if not math.isfinite(seen.mean) else ("norm of the gradient", norm)
        in_a_row = f"; so were {self.skipped - 1} steps before it" if skips else ""
        record = f" What the step saw stands in {place}." if place else ""
        leave_out = "" if skips else " --on-nan skip leaves such steps out."
        raise ConfigError(
            f"Step {step}: the {what} is {value}{in_a_row}. Lower the learning rates (--stage.lr.*) or use --precision fp32.{leave_out}{record}"
        )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Start torch's random numbers anew, from the run's seed, the step and the rank, so that no generator's state has to be stored or resumed."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _take(stream: Iterator[TrainBatch], count: int, device: torch.device) -> list[TrainBatch]:
    batches = []
    for _ in range(count):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"The data ended within a step: {count} micro-batches were wanted, {len(batches)} came.")
        batches.append(batch.to(device))
    return batches


def refuse_broken_weights(model: nn.Module, step: int) -> None:
    """Look for trained weights that are not numbers: an update can overflow where loss and gradient are finite, and no later loss shows the last one.

    Raises:
        ConfigError: If there is one; the remedy is that of a loss that is not a number.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not is_finite(weight):
            raise ConfigError(
                f"Step {step}: the update left values in {name!r} that are not finite, so nothing is saved. "
                "Lower the learning rates (--stage.lr.*) or use --precision fp32; earlier checkpoints are intact."
            )


def _metrics(
    loss: float, norm: float, rates: Mapping[str, float], batches: Sequence[TrainBatch], *, seconds: float, waited: float, world: World
) -> dict[str, float]:
    counts = [batch.counts() for batch in batches]
    total = dict(zip(counts[0], sum_lists_over_ranks([sum(count[name] for count in counts) for name in counts[0]], world), strict=True))
    return {
        "loss": loss,
        "grad_norm": norm,
        **{f"lr/{part}": rate for part, rate in rates.items()},
        **{f"{name}_per_second": total[name] / seconds for name in SPEEDS if name in total},
        **{f"num_{name}": total[name] for name in AMOUNTS if name in total},
        **({"padding_share": 1 - total["tokens"] / total["slots"]} if "slots" in total else {}),
        "seconds_per_step": seconds,
        "data_wait_share": waited / seconds,
    }


def _source_metrics(sources: Sequence[str], by_source: list[float], batches: Sequence[TrainBatch], world: World) -> dict[str, float]:
    """Mean loss and conversations of each source in the step; nothing where all data is from one, and no loss of a source without labels."""
    if len(sources) < 2:
        return {}
    counts = [sum(batch.samples_by_source[i] for batch in batches) for i in range(len(sources))]
    totals = sum_lists_over_ranks([*by_source, *counts], world)
    sums, labels, samples = totals[: 2 * len(sources) : 2], totals[1 : 2 * len(sources) : 2], totals[2 * len(sources) :]
    losses = {f"loss/{name}": total / count for name, total, count in zip(sources, sums, labels, strict=True) if count}
    return losses | {f"num_samples/{name}": count for name, count in zip(sources, samples, strict=True)}

"""The training loop: micro-batches to optimizer steps, with the loss normalized over the whole global batch.

Knows the model only as `model(batch) -> LossSum`; data, validation, checkpoints and metrics come as values and callables from the command.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from vlm.conf.schema import BatchPlan, StageConfig
from vlm.distributed.collectives import sum_lists_over_ranks, sum_over_ranks
from vlm.distributed.shard import data_parallel, exchange_seconds, gradient_exchange
from vlm.errors import ConfigError, DataFormatError
from vlm.training.meter import COMMUNICATION, OPTIMIZER, Meter
from vlm.training.optim import make_optimizer, make_schedule, rates_by_part
from vlm.types import ChatBatch, World


@dataclass(frozen=True)
class Hooks:
    """What happens after an optimizer step, beside training.

    Attributes:
        log: Takes the step, from 1, and its metrics.
        after_step: Takes the step; validation and checkpoints.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    after_step: Callable[[int], None] = lambda step: None


def count_steps(stage: StageConfig, num_rows: int) -> int:
    """Optimizer steps of a stage that goes through so many rows."""
    return stage.max_steps or max(1, math.ceil(num_rows / stage.global_batch_size))


def train(
    model: nn.Module,
    batches: Iterable[ChatBatch],
    *,
    stage: StageConfig,
    plan: BatchPlan,
    num_steps: int,
    world: World,
    autocast: bool,
    hooks: Hooks,
    sources: Sequence[str] = (),
    meter: Meter | None = None,
) -> list[float]:
    """Train for `num_steps` optimizer steps and return the mean loss of each.

    Args:
        model: The assembled model, its frozen parts already frozen.
        batches: This rank's micro-batches, `plan.accumulation` for each step.
        stage: Rates, schedule and clipping.
        plan: How the global batch is cut.
        num_steps: Optimizer steps.
        world: The processes of this run.
        autocast: True to run the forward pass under bf16 autocast.
        hooks: What happens after each step.
        sources: Names of the sources of the mixture, for metrics.
        meter: What counts FLOPs; None to report times alone.

    Raises:
        DataFormatError: If a global batch has no labelled token.
        ConfigError: If the loss or its gradient is not a number.
    """
    optimizer = make_optimizer(model, stage)
    schedule = make_schedule(optimizer, stage, num_steps)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    wrapped = data_parallel(model, world)
    model.train()
    meter = meter or Meter(None, peak=None, world=world)
    losses, stream = [], meter.watch(batches)
    for step in range(1, num_steps + 1):
        clock = time.perf_counter()
        micro_batches = _take(stream, plan.accumulation, world.device)
        waited = time.perf_counter() - clock
        loss, by_source = _accumulate(wrapped, micro_batches, world=world, autocast=autocast, step=step, meter=meter)
        norm = nn.utils.clip_grad_norm_(weights, stage.clip_norm if stage.clip_norm is not None else math.inf).item()
        _refuse_nan(norm, "norm of the gradient", step)
        rates = rates_by_part(optimizer)
        with meter.span(OPTIMIZER):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        meter.add(COMMUNICATION, exchange_seconds(wrapped))
        losses.append(loss)
        seconds = time.perf_counter() - clock
        metrics = _metrics(loss, norm, rates, micro_batches, seconds=seconds, waited=waited, world=world)
        hooks.log(step, metrics | meter.step(seconds) | _source_metrics(sources, by_source, micro_batches, world))
        hooks.after_step(step)
        model.train()
    return losses


def _take(stream: Iterator[ChatBatch], count: int, device: torch.device) -> list[ChatBatch]:
    batches = [batch.to(device) for batch in islice(stream, count)]
    if len(batches) < count:
        raise ValueError(f"The data ended within a step: {count} micro-batches were wanted, {len(batches)} came.")
    return batches


def _accumulate(
    model: nn.Module, micro_batches: list[ChatBatch], *, world: World, autocast: bool, step: int, meter: Meter
) -> tuple[float, list[float]]:
    """Backward passes of one global batch; returns its mean loss, and this rank's sum and count of each source of a mixture, flat.

    Each micro-batch's sum is divided by the labels of the whole global batch, counted over all ranks before the first backward pass, and multiplied by
    the number of ranks, because DDP averages: so neither accumulation nor world size changes the gradient.
    """
    labels = sum(batch.num_labels for batch in micro_batches)
    with meter.span(COMMUNICATION):
        count = sum_over_ranks(labels, world)
    if count == 0:
        raise DataFormatError(
            f"Step {step}: no sample of the global batch has a labelled token. Check that the answers of the dataset are not empty."
        )
    sums: list[Tensor] = []
    by_source: list[Tensor] = []
    for i, batch in enumerate(micro_batches):
        with gradient_exchange(model, on=i + 1 == len(micro_batches)):
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=autocast):
                loss = model(batch)
            (loss.sum * (world.size / count)).backward()
        sums.append(loss.sum.detach())
        by_source += [] if loss.by_source is None else [loss.by_source]
    mean = sum_over_ranks(sum(part.item() for part in sums), world) / count
    _refuse_nan(mean, "loss", step)
    return mean, torch.stack(by_source).sum(0).flatten().tolist() if by_source else []


def _refuse_nan(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"Step {step}: the {what} is {value}. Lower the learning rates (--stage.lr.*) or use --precision fp32.")


def refuse_broken_weights(model: nn.Module, step: int) -> None:
    """Look for trained weights that are not numbers: an update can overflow where loss and gradient are finite, and no later loss shows the last one.

    Raises:
        ConfigError: If there is one; the remedy is that of a loss that is not a number.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise ConfigError(
                f"Step {step}: the update left values in {name!r} that are not finite, so nothing is saved. "
                "Lower the learning rates (--stage.lr.*) or use --precision fp32; earlier checkpoints are intact."
            )


def _metrics(
    loss: float, norm: float, rates: Mapping[str, float], batches: list[ChatBatch], *, seconds: float, waited: float, world: World
) -> dict[str, float]:
    slots = sum(batch.ids.numel() for batch in batches)
    tokens = slots - sum(batch.num_padding for batch in batches)
    images, samples, truncated = (sum(count) for count in zip(*((len(b.pixels), b.num_samples, b.num_truncated) for b in batches), strict=True))
    slots, tokens, images, samples, truncated = sum_lists_over_ranks([slots, tokens, images, samples, truncated], world)
    return {
        "loss": loss,
        "grad_norm": norm,
        **{f"lr/{part}": rate for part, rate in rates.items()},
        "tokens_per_second": tokens / seconds,
        "images_per_second": images / seconds,
        "num_samples": samples,
        "num_truncated": truncated,
        "padding_share": 1 - tokens / slots,
        "seconds_per_step": seconds,
        "data_wait_share": waited / seconds,
    }


def _source_metrics(sources: Sequence[str], by_source: list[float], batches: list[ChatBatch], world: World) -> dict[str, float]:
    """Mean loss and conversations of each source in the step; nothing where all data is from one, and no loss of a source without labels."""
    if len(sources) < 2:
        return {}
    counts = [sum(batch.samples_by_source[i] for batch in batches) for i in range(len(sources))]
    totals = sum_lists_over_ranks([*by_source, *counts], world)
    sums, labels, samples = totals[: 2 * len(sources) : 2], totals[1 : 2 * len(sources) : 2], totals[2 * len(sources) :]
    losses = {f"loss/{name}": total / count for name, total, count in zip(sources, sums, labels, strict=True) if count}
    return losses | {f"num_samples/{name}": count for name, count in zip(sources, samples, strict=True)}

"""The roofline meter: FLOP/s that a run achieves, their share of the device's peak, and where the rest of the time goes.

Counts come from shapes alone (`vlm.models.flops`, `vlm.models.head_flops`), so they cost nothing on the device; times of spans come from CUDA events, which are read when the
device has passed them: no step waits for the meter.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from vlm.conf.schema import TrainConfig
from vlm.distributed.collectives import sum_lists_over_ranks
from vlm.models.build import skeleton
from vlm.models.flops import FlopModel, Spent
from vlm.training.peak import Peak, peak_of
from vlm.types import World

log = logging.getLogger(__name__)

OPTIMIZER, COMMUNICATION = "optimizer", "communication"


@runtime_checkable
class StepFlops(Protocol):
    """FLOPs of a kind of model."""

    def work_of(self, batch: Any) -> Any:
        """What a batch holds, as far as it costs anything; the batch is on the CPU."""
        ...

    def spent(self, works: Sequence[Any]) -> Spent:
        """FLOPs of one process in a step of batches that hold so much."""
        ...


class Meter:
    """What one process computes in each step, and how long parts of the step take."""

    def __init__(self, flops: StepFlops | None, *, peak: Peak | None, world: World, clock: Callable[[], float] = time.perf_counter):
        """Begin to count.

        Args:
            flops: FLOPs of the model; None counts none and reports times alone.
            peak: Peak of each process's device.
            world: The processes of this run.
            clock: Seconds of the host, from any moment on.
        """
        self._flops, self._peak, self._world, self._clock = flops, peak, world, clock
        self._works: list[Any] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, Any, Any]] = []  # CUDA events

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass batches through, and count what they hold while they are still on CPU."""
        for batch in batches:
            if self._flops is not None:
                self._works.append(self._flops.work_of(batch))
            yield batch

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a part of the step (OPTIMIZER, COMMUNICATION); on CUDA by the device's clock."""
        if self._world.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((name, start, end))
            return
        started = self._clock()
        yield
        self.add(name, self._clock() - started)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    def step(self, seconds: float) -> dict[str, float]:
        """Metrics of the step that ends here, and a new count.

        `flops_per_second` are those that tokens and tiles, or pairs, need, over all processes, without padding and without what is computed
        twice to keep less; `mfu` is their share of the peak of all devices. `recompute_share` is a share of the FLOPs that were computed, `optimizer_share` and
        `communication_share` are shares of this process's time; on CUDA, of spans that the device has finished, which may be one step old.

        Args:
            seconds: How long the step took.
        """
        self._read_events()
        # at most 1: what was measured may be of an earlier step, which may have taken longer
        shares = {f"{name}_share": min(self._seconds[name] / seconds, 1.0) for name in (OPTIMIZER, COMMUNICATION)}
        works, self._works, self._seconds = self._works, [], defaultdict(float)
        return shares if self._flops is None or not works else shares | self._roofline(self._flops.spent(works), seconds)

    def _roofline(self, spent: Spent, seconds: float) -> dict[str, float]:
        useful, recomputed, total = sum_lists_over_ranks([spent.useful, spent.recomputed, spent.total], self._world)
        achieved = {"flops_per_second": useful / seconds, "recompute_share": recomputed / total}
        if self._peak is not None:
            achieved["mfu"] = useful / seconds / (self._peak.flops_per_second * self._world.size)
        return achieved

    def _read_events(self) -> None:
        waiting = []
        for name, start, end in self._pending:
            if end.query():
                self.add(name, start.elapsed_time(end) / 1000)
            else:
                waiting.append((name, start, end))
        self._pending = waiting


def make_meter(config: TrainConfig, *, precision: str, world: World) -> Meter:
    """The meter of a run of a vision-language model.

    Args:
        config: The run.
        precision: Its precision, resolved.
        world: Its processes.
    """
    model = skeleton(config.model, precision=precision, trained=config.stage.lr.trained)
    return meter_of(FlopModel.of(model, recomputed=config.stage.gradient_checkpointing), precision=precision, world=world)


def meter_of(flops: StepFlops, *, precision: str, world: World) -> Meter:
    """A meter that compares with the peak of this device, which is logged.

    Args:
        flops: FLOPs of the model.
        precision: Precision of the run, resolved.
        world: Its processes.
    """
    peak = peak_of(world.device, torch.float32 if precision == "fp32" else torch.bfloat16)
    if world.is_main:
        log.info("mfu: share of %.4g TFLOP/s a device, %s", peak.flops_per_second / 1e12, peak.origin)
    return Meter(flops, peak=peak, world=world)

"""Steps that went wrong: what a loss that is not a number, or a sudden spike, is written down with. Changes nothing in training."""

import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm.distributed.collectives import gather
from vlm.types import World

log = logging.getLogger(__name__)

FILE = "incidents.jsonl"
MOST_SPIKES = 50  # that are written down; a run that jumps more often is a noisy one
WINDOW, LEAST = 64, 16  # losses that a new one is compared with, at most and at least
DEVIATIONS = 8.0  # a spike is so many median absolute deviations above the median; of normal noise one in 10^7 is
LEAST_JUMP = 0.2  # and by this share of the median, because a flat curve has hardly any deviation


@dataclass(frozen=True)
class MicroBatchLoss:
    """Mean loss of a micro-batch, and the samples in it."""

    loss: float
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Incident:
    """A step that went wrong.

    Attributes:
        step: Number of the step, from 1.
        kind: `nan`: loss or gradient is not finite; `spike`: the loss is far above those before it.
        loss: Mean loss of the global batch.
        norms: Norm of the gradient of each part.
        micro_batches: This rank's losses and samples.
    """

    step: int
    kind: str
    loss: float
    norms: Mapping[str, float]
    micro_batches: Sequence[MicroBatchLoss]


class SpikeDetector:
    """Compares each loss with the median of those before it."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def sees(self, loss: float) -> bool:
        """True if this loss is a spike; a loss that is not a number is none, and is not remembered."""
        if not math.isfinite(loss):
            return False
        median = statistics.median(self._seen) if self._seen else loss
        deviation = statistics.median(abs(other - median) for other in self._seen) if self._seen else 0.0
        spike = len(self._seen) >= LEAST and loss > median + max(DEVIATIONS * deviation, LEAST_JUMP * abs(median))
        self._seen.append(loss)
        return spike


class Incidents:
    """Writes incidents into the run folder, with the ids of their samples."""

    def __init__(self, run_dir: Path, world: World, id_of: Callable[[int], str]):
        """Begin with none.

        Args:
            run_dir: The run folder.
            world: The processes of this run; all come here for the same steps.
            id_of: The id of a sample by its number.
        """
        self._path, self._world, self._id_of, self._spikes = run_dir / FILE, world, id_of, 0

    def __call__(self, incident: Incident) -> str:
        """Write an incident down and say so; returns the file, or nothing where it was not written."""
        self._spikes += incident.kind == "spike"
        if incident.kind == "spike" and self._spikes > MOST_SPIKES:
            return ""
        own = [{"rank": self._world.rank, **self._micro_batch(batch)} for batch in incident.micro_batches]
        ranks = gather(own, self._world)
        if self._world.is_main:
            self._write(asdict(incident) | {"micro_batches": [batch for batches in ranks for batch in batches]})
        return str(self._path)

    def _micro_batch(self, batch: MicroBatchLoss) -> dict[str, object]:
        return {"loss": batch.loss, "samples": [self._id_of(sample) for sample in batch.samples]}

    def _write(self, values: dict[str, Any]) -> None:
        if values["kind"] == "spike":
            log.warning("warning: step %d: the loss jumped to %.4g; its samples stand in %s", values["step"], values["loss"], self._path)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_in_json(values), allow_nan=False) + "\n")
        except OSError as error:  # training is worth more than the record of an incident
            log.warning("warning: %s could not be written: %s", self._path, error.strerror)


def _in_json(value: Any) -> Any:
    """JSON has no word for a number that is not finite."""
    if isinstance(value, dict):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

"""What scoring very many pairs will take: a sample is scored and timed, and the arithmetic is done. Writes nothing."""

import resource
import sys
import time
from dataclasses import dataclass
from itertools import islice

import torch

from vlm.errors import DataFormatError
from vlm.score.opening import Opened
from vlm.score.pairs import Pair

WARM_UP, SAMPLE = 64, 512  # rows before the clock starts, and rows that are timed
SECONDS_A_DAY = 24 * 60 * 60
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@dataclass(frozen=True)
class Estimate:
    """A measurement of a sample, and what follows for `pairs` pairs by one process.

    Attributes:
        pairs: Pairs that are asked about.
        sample: Rows that were timed.
        images: Distinct pictures among them.
        texts: Distinct texts among them.
        seconds: What they took.
        ram_gb: Most resident memory of the process, 10^9 bytes.
        gpu_gb: Most memory of tensors on the GPU; 0 without one.
        price_per_hour: Of the machine, in any currency.
    """

    pairs: int
    sample: int
    images: int
    texts: int
    seconds: float
    ram_gb: float
    gpu_gb: float
    price_per_hour: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        """Rows of the sample a second."""
        return self.sample / self.seconds

    @property
    def days(self) -> float:
        """Days for all pairs."""
        return days(self.pairs, self.pairs_per_second)

    @property
    def cost(self) -> float:
        """Price of all pairs."""
        return self.days * 24 * self.price_per_hour


def days(pairs: int, pairs_per_second: float) -> float:
    """Days for so many pairs at that speed: 100 million at 10 a second are 115.74."""
    return pairs / pairs_per_second / SECONDS_A_DAY


def measure(opened: Opened, pairs: int, *, price_per_hour: float = 0.0, sample: int = SAMPLE, warm_up: int = WARM_UP) -> Estimate:
    """Time the rows behind the first ones.

    Args:
        opened: The job.
        pairs: Pairs that are asked about.
        price_per_hour: Of the machine.
        sample: Rows to time.
        warm_up: Rows before them; all rows are timed if there are no more.

    Raises:
        DataFormatError: If the table has no row.
    """
    rows: list[Pair] = []
    for _, part in opened.table.parts(sample + warm_up, lambda index: index == 0):
        rows = list(islice(part or (), sample + warm_up))
        break
    if not rows:
        raise DataFormatError("There is no row to measure with.")
    first, timed = (rows[:warm_up], rows[warm_up:]) if len(rows) > warm_up else ([], rows)
    scorer = opened.scorer
    for _ in scorer.tables(first):
        pass
    scorer.forget()  # a sample that begins with known pictures would look fast
    device = scorer.encoder.device
    begin = _now(device)
    for _ in scorer.tables(timed):
        pass
    seconds = _now(device) - begin
    ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e9
    gpu = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return Estimate(pairs, len(timed), scorer.done.images, scorer.done.texts, seconds, ram, gpu, price_per_hour)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

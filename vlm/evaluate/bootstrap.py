"""Numbers with their bootstrap intervals (Efron 1979) and the level of chance. Knows no metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Score:
    """A metric.

    Attributes:
        value: On the data as it is; NaN where the metric is not defined.
        low: Lower end of the 95 % percentile interval.
        high: Its upper end.
        chance: What a guess would reach.
    """

    value: float
    low: float
    high: float
    chance: float


def with_intervals(
    metrics: Callable[[Int[Tensor, " n"]], Mapping[str, float]], count: int, chance: Mapping[str, float], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Metrics on all units, and how far they move when the units are drawn again with replacement; draws that do not define a metric are left out of it.

    Args:
        metrics: Metrics on a choice of units, by their positions.
        count: Units.
        chance: Level of chance of each metric.
        resamples: Draws.
        seed: Seed of the draws: the same draws for every model.
    """
    values = metrics(torch.arange(count))
    generator = torch.Generator().manual_seed(seed)
    drawn = [metrics(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    scores = {}
    for name, value in values.items():
        samples = torch.tensor([sample[name] for sample in drawn], dtype=torch.float64)
        low, high = samples.nanquantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
        scores[name] = Score(value, low, high, chance[name])
    return scores

"""What ranks tell each other. Every function changes nothing in a run of one process."""

from collections.abc import Sequence

import torch

from vlm.types import World


def sum_over_ranks(value: float | int, world: World) -> float:
    """The sum of a number over all ranks."""
    if world.size == 1:
        return float(value)
    total = torch.tensor(value, dtype=torch.float64, device=world.device)
    torch.distributed.all_reduce(total)
    return total.item()


def sum_lists_over_ranks(values: Sequence[float | int], world: World) -> list[float]:
    """The sums over all ranks of numbers of which every rank has as many."""
    if world.size == 1 or not values:
        return [float(value) for value in values]
    total = torch.tensor(values, dtype=torch.float64, device=world.device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def wait_for_all(world: World) -> None:
    """Return when every rank has come here."""
    if world.size > 1:
        torch.distributed.barrier()

"""What ranks tell each other. Every function changes nothing in a run of one process."""

import torch

from vlm.types import World


def sum_over_ranks(value: float | int, world: World) -> float:
    """The sum of a number over all ranks."""
    if world.size == 1:
        return float(value)
    total = torch.tensor(value, dtype=torch.float64, device=world.device)
    torch.distributed.all_reduce(total)
    return total.item()


def wait_for_all(world: World) -> None:
    """Return when every rank has come here."""
    if world.size > 1:
        torch.distributed.barrier()

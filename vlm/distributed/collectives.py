"""What ranks tell each other. Every function changes nothing in a run of one process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from vlm.types import World

T = TypeVar("T")

PATIENCE = timedelta(days=2)  # for what only one rank does: counting the tokens of a huge dataset, writing a checkpoint to a slow disk


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


def any_rank(value: bool, world: World) -> bool:
    """True if it is true on any rank."""
    return sum_over_ranks(int(value), world) > 0


def gather(value: T, world: World, group: Any = None) -> list[T]:
    """The values of all ranks, on every rank, in the order of the ranks.

    Args:
        value: What this rank has; anything that can be pickled.
        world: The processes of this run.
        group: A `patient_group`, by which alone a background thread may speak to other ranks.
    """
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(values, value, group=group or patient_group())
    return values


def gather_with_gradient(tensor: Shaped[Tensor, "B *rest"], world: World) -> Shaped[Tensor, "G *rest"]:
    """The rows of all ranks, on every rank, in the order of the ranks; the gradient of a row is the sum of what all ranks' losses say about it.

    So the gradient of each rank's parameters is that of the sum of all ranks' losses with respect to its own rows; averaged over the ranks, as DDP does,
    it is 1 / size of the gradient that one process has for all rows.

    Raises:
        ValueError: On every rank, if they have different numbers of rows.
    """
    if world.size == 1:
        return tensor
    counts = tensor.new_empty(world.size, dtype=torch.int64)
    torch.distributed.all_gather_into_tensor(counts, counts.new_tensor([len(tensor)]))
    if len(set(counts.tolist())) > 1:
        raise ValueError(f"Ranks must gather equally many rows; they have {', '.join(map(str, counts.tolist()))}. Drop the batch, or cut it evenly.")
    return _GatherRows.apply(tensor, world.size)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, size: int) -> Tensor:
        rows = tensor.new_empty(size * len(tensor), *tensor.shape[1:])
        torch.distributed.all_gather_into_tensor(rows, tensor.contiguous())
        ctx.size = size
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        own = gradient.new_empty(len(gradient) // ctx.size, *gradient.shape[1:])
        torch.distributed.reduce_scatter_tensor(own, gradient.contiguous())
        return own, None


def from_main(value: T, world: World) -> T:
    """The main process's value, on every rank."""
    return gather(value, world)[0]


def wait_for_all(world: World) -> None:
    """Return when every rank has come here, even if one works alone for hours: on a group of its own, because others stop waiting after minutes."""
    if world.size > 1:
        torch.distributed.barrier(patient_group())


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """The main process runs the block before the others, which find what it stored; all leave it together."""
    if not world.is_main:
        wait_for_all(world)
    yield
    if world.is_main:
        wait_for_all(world)
    wait_for_all(world)


@cache
def patient_group(name: str = "") -> Any:
    """A group of all ranks that waits for days; None in a run of one process. All ranks must ask for a new name at the same time."""
    if not torch.distributed.is_initialized():
        return None
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE, group_desc=name or "patient")

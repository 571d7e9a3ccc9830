"""Losses as sum and count. Pure functions of tensors; they know no model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlm.types import LossSum

WHOLE = 2**28  # logits, 1 GiB in fp32: up to here they are made once and kept for the backward pass
CHUNK = 2**26  # logits of a chunk beyond that; the head is then run a second time in the backward pass


def cross_entropy(logits: Float[Tensor, "M V"], targets: Int[Tensor, " M"]) -> LossSum:
    """Sum of the negative log-likelihoods of the targets, computed in fp32, and their number."""
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return LossSum(loss, targets.new_tensor(targets.numel()))


def cross_entropy_by_source(logits: Float[Tensor, "M V"], targets: Int[Tensor, " M"], sources: Int[Tensor, " M"], num_sources: int) -> LossSum:
    """The same, with sum and count for each source besides."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")  # [M]
    table = losses.new_zeros(num_sources, 2)
    table.index_add_(0, sources, torch.stack([losses.detach(), torch.ones_like(losses)], dim=1))
    return LossSum(losses.sum(), targets.new_tensor(targets.numel()), table)


def in_chunks(
    loss: Callable[[Float[Tensor, "m E"], Int[Tensor, " m"], Int[Tensor, " m"] | None], LossSum],
    hidden: Float[Tensor, "M E"],
    targets: Int[Tensor, " M"],
    sources: Int[Tensor, " M"] | None,
    *,
    vocabulary: int,
) -> LossSum:
    """The loss of all rows, computed at once, or in chunks where the logits would be large: exact, and [M, V] is never whole in memory.

    Args:
        loss: Loss of some rows, the head included.
        hidden: The rows that the head is run on.
        targets: Their targets.
        sources: Their sources.
        vocabulary: Logits a row.
    """
    if len(hidden) * vocabulary <= WHOLE:
        return loss(hidden, targets, sources)
    size = max(1, CHUNK // vocabulary)
    columns = zip(hidden.split(size), targets.split(size), [None] * -(-len(hidden) // size) if sources is None else sources.split(size), strict=True)
    parts = [checkpoint(loss, *column, use_reentrant=False) for column in columns]
    table = None if sources is None else torch.stack([part.by_source for part in parts if part.by_source is not None]).sum(0)
    return LossSum(torch.stack([part.sum for part in parts]).sum(), torch.stack([part.count for part in parts]).sum(), table)

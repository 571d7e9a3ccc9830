"""Losses as sum and count. Pure functions of tensors; they know no model."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vlm.types import LossSum


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

"""Losses as sum and count. Pure functions of tensors; they know no model."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm.types import IGNORE_INDEX, LossSum


def predicting(labels: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Positions whose hidden state predicts a label: one before each labelled token, so never the last of a row."""
    mask = labels.new_zeros(labels.shape, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def cross_entropy(logits: Float[Tensor, "M V"], targets: Int[Tensor, " M"]) -> LossSum:
    """Sum of the negative log-likelihoods of the targets, computed in fp32, and their number."""
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return LossSum(loss, targets.new_tensor(targets.numel()))

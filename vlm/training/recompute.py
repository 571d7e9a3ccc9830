"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks keep their inputs alone and are computed again in the backward pass.

Not transformers' own switch, which does nothing in evaluation mode: a frozen language model stays in that mode, and its activations are kept all the
same, because the gradient of the connector runs through it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let each block recompute its activations whenever gradients are on; names of modules and weights stay."""
    for block in blocks:
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*values, **named)
        return checkpoint(forward, *values, use_reentrant=False, **named)

    return run

"""The feed-forward part of the last decoder layer, computed at the places alone whose hidden states somebody reads.

No later layer mixes places, so what stands elsewhere changes nothing: the result at the needed places is the same, and so is every gradient. Attention
runs as ever, because its keys are read from all places. Knows no family: a layer needs an `mlp` that maps each place by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class _Needed:
    """The places of the call that is running; None for all."""

    places: Int[Tensor, " M"] | None = None


def at_needed_places(layer: nn.Module) -> None:
    """Let a layer take `needed`, different places in its flattened rows; without it, or with None, the layer is as it was. Names of modules and weights stay.

    `needed` comes with each call and is forgotten after it, so that gradient checkpointing, which calls again in the backward pass, computes the same.
    """
    mlp: Any = layer.mlp
    needed = _Needed()
    layer.forward = _taking(needed, layer.forward)  # type: ignore[method-assign]
    mlp.forward = _somewhere(needed, mlp.forward)


def _taking(needed: _Needed, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any, **named: Any) -> Any:
        needed.places = named.pop("needed", None)
        try:
            return forward(*values, **named)
        finally:
            needed.places = None

    return run


def _somewhere(needed: _Needed, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(states: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        if needed.places is None:
            return forward(states)
        out = forward(states.flatten(0, 1).index_select(0, needed.places))
        elsewhere = torch.zeros(states.shape[0] * states.shape[1], out.shape[-1], dtype=out.dtype, device=out.device)
        return elsewhere.index_copy(0, needed.places, out).unflatten(0, states.shape[:2])

    return run

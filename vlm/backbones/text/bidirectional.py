"""Decoders whose tokens see later tokens as well: the switch, and the check at load that it works. Knows no family.

transformers 5 builds a bidirectional mask where `config.is_causal` is False. Setting the attention modules' `is_causal` alone, as was done for
transformers 4, works in batches without padding and nowhere else, so that vectors depend on the texts beside them.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.errors import CheckpointError


def make_bidirectional(model: Any, *, padding_side: str = "left") -> None:
    """Let the tokens of a decoder see later tokens, in place, and check that they do.

    Args:
        model: A decoder of transformers without head. The switch is in its config, so a copy saved from it stays bidirectional.
        padding_side: Where the padding of its batches will be.

    Raises:
        CheckpointError: If the switch has no effect, or padding has one.
    """
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    check_attention(model, bidirectional=True, padding_side=padding_side)


@torch.no_grad()
def check_attention(model: Any, *, bidirectional: bool, padding_side: str = "left") -> None:
    """Try a few tokens: does the first see the second, with and without padding beside them, and does padding change anything?

    Args:
        model: A decoder without head; on the meta device nothing is checked.
        bidirectional: Whether a token is to see later ones.
        padding_side: Where the padding is.

    Raises:
        CheckpointError: If the model does otherwise, as after a change in transformers.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    left, training = padding_side == "left", model.training
    model.eval()
    try:
        alone, padded, other_pads = (_states(model, device, pads, left=left) for pads in ((), (1, 1, 1), (2, 3, 2)))
        changed_alone, changed_padded = (_states(model, device, pads, left=left, second=6) for pads in ((), (1, 1, 1)))
    finally:
        model.train(training)
    name, scale = type(model).__name__, float(alone.abs().max())
    for states, changed, where in ((alone, changed_alone, "without"), (padded, changed_padded, "beside")):
        moved = float((states[0] - changed[0]).abs().max())
        if (moved > 1e-6 * scale) != bidirectional:
            wanted = "do not see" if bidirectional else "see"
            raise CheckpointError(
                f"The tokens of {name} {wanted} later tokens {where} padding (the first one's state moved by {moved:.2g}); the setting of its attention "
                "has no effect with this version of transformers. Use another version, or report it."
            )
    leak = max(float((states - padded).abs().max()) for states in (other_pads, alone))
    if not leak <= scale * torch.finfo(alone.dtype).eps ** 0.5:
        raise CheckpointError(
            f"Padding on the {padding_side} changes what {name} says of a text by {leak:.2g}. A model with absolute positions needs padding on the "
            "right (`Reading.padding_side`); otherwise use another version of transformers, or report it."
        )


def _states(model: Any, device: torch.device, pads: tuple[int, ...], *, left: bool, second: int = 5) -> Float[Tensor, "T E"]:
    """Last states of three tokens beside padding, in a batch whose other row has none."""
    text = (4, second, 7)
    row = (*pads, *text) if left else (*text, *pads)
    ids = torch.tensor([row, range(4, 4 + len(row))], device=device) % model.config.vocab_size
    seen = torch.ones_like(ids)
    places = slice(len(pads), None) if left else slice(0, len(text))
    seen[0] = 0
    seen[0, places] = 1
    return _hidden(model, ids, seen)[0, places]


def _hidden(model: Any, ids: Int[Tensor, "B T"], seen: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
    return model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state

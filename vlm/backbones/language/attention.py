"""The one attention function of training: causal within each document of `Documents`, whatever the language family.

Registered with transformers' AttentionInterface under the name `NAME`; no mask function is registered beside it, so transformers builds no mask.
Knows no model: `documents` arrives as a keyword argument of the decoder's call.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlm.types import Documents

NAME = "vlm_documents"


def register() -> None:
    """Make the function known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)


def document_attention(
    module: nn.Module,
    query: Float[Tensor, "B heads T width"],
    key: Float[Tensor, "B kv_heads T width"],
    value: Float[Tensor, "B kv_heads T width"],
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B T heads width"], None]:
    """Causal attention inside each document; tokens of other documents have exactly no influence.

    Args:
        module: The attention module that calls; grouped keys are recognized by their head count.
        query: Queries.
        key: Keys.
        value: Values.
        attention_mask: Must be None: borders come from `documents`.
        documents: Borders.
        scaling: Factor on the scores; None for 1 / sqrt(width).
        dropout: Probability of dropping an attention weight.
        sliding_window: Tokens that a query sees, itself included; None for all earlier ones.
    """
    assert attention_mask is None, "transformers built a mask beside the documents"

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = _window_mask(q.shape[2], sliding_window, q.device)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=window, dropout_p=dropout, is_causal=window is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )

    if documents.is_one_per_row:
        return attend(query, key, value).transpose(1, 2).contiguous(), None
    return _per_document(attend, query, key, value, documents), None


def _per_document(attend: Any, query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    rows, _, length, _ = query.shape
    pieces = []
    borders = documents.starts.tolist()
    for start, end in zip(borders, borders[1:], strict=False):
        row, first = divmod(start, length)
        cut = (slice(row, row + 1), slice(None), slice(first, first + end - start))
        pieces.append(attend(query[cut], key[cut], value[cut]).transpose(1, 2).squeeze(0))  # [length of the document, heads, width]
    return torch.cat(pieces).unflatten(0, (rows, length))


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """A causal band for families with sliding windows; None where the window covers the document."""
    if window is None or window >= length:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)

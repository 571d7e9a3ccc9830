"""The one attention function of the language models: causal within each document of `Documents`, whatever the family.

Registered with transformers' AttentionInterface under `NAME`, once a model; nothing is switched between training and generation. In training the
decoder's call brings `document_pieces` and the stand-in mask, which transformers passes on untouched instead of building one; without pieces
(generation, plain use of the model) the function is transformers' own SDPA with transformers' own masks. Knows no model.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.types import Documents

NAME = "vlm_documents"
WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states", "return_dict"}


class Piece(NamedTuple):
    """Where a document lies in the rows, and the places of the documents that it sees as well, from the root of the message tree on."""

    row: int
    first: int
    last: int
    path: tuple["Piece", ...] = ()


def register() -> None:
    """Make the function known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def pieces_of(documents: Documents) -> tuple[Piece, ...]:
    """Places of the documents, read off the device once a forward pass; empty where every row is one document."""
    if documents.is_one_per_row:
        return ()
    length = documents.positions.shape[1]
    prefix = [-1] * (len(documents.starts) - 1) if documents.prefix is None else documents.prefix.tolist()
    pieces: list[Piece] = []
    for i, (start, end) in enumerate(pairwise(documents.starts.tolist())):
        row, first = divmod(start, length)
        if prefix[i] >= i:
            raise ValueError(f"Document {i} has document {prefix[i]} as its prefix; a prefix comes earlier in the batch.")
        parent = pieces[prefix[i]] if prefix[i] >= 0 else None
        pieces.append(Piece(row, first, first + end - start, (*parent.path, parent._replace(path=())) if parent else ()))
    return tuple(pieces)


def stand_in_mask(embeds: Tensor) -> Tensor:
    """A four-dimensional mask of one element: transformers takes it for a finished mask and builds none."""
    return embeds.new_zeros(1, 1, 1, 1)


def document_attention(
    module: nn.Module,
    query: Float[Tensor, "B heads T width"],
    key: Float[Tensor, "B kv_heads S width"],
    value: Float[Tensor, "B kv_heads S width"],
    attention_mask: Tensor | None,
    *,
    document_pieces: tuple[Piece, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "B T heads width"], None]:
    """Causal attention inside each document; tokens of other documents have exactly no influence.

    Args:
        module: The attention module that calls.
        query: Queries.
        key: Keys; fewer heads than queries where the family groups them.
        value: Values.
        attention_mask: transformers' mask; the stand-in if there are pieces.
        document_pieces: Places of the documents, empty for one a row; None outside of training.
        scaling: Factor on the scores; None for 1 / sqrt(width).
        dropout: Probability of dropping an attention weight.
        sliding_window: Tokens that a query sees, itself included; None for all earlier ones.
        settings: What else the family passes; refused unless it is known to have no effect here.

    Raises:
        ConfigError: If the family asks for something that this function does not compute, such as soft-capped scores.
    """
    if document_pieces is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        settings |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    unknown = sorted(name for name, setting in settings.items() if setting is not None and name not in WITHOUT_EFFECT)
    if unknown:
        raise ConfigError(f"{type(module).__name__} needs {', '.join(unknown)}, which per-document attention does not compute; choose another model.")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _causal(q, k, v, window=sliding_window, scaling=scaling, dropout=dropout).transpose(1, 2)

    if not document_pieces:
        return attend(query, key, value).contiguous(), None
    parts = [attend(_cut(query, [piece]), _cut(key, [*piece.path, piece]), _cut(value, [*piece.path, piece]))[0] for piece in document_pieces]
    return torch.cat(parts).unflatten(0, (query.shape[0], query.shape[2])), None


def _cut(states: Tensor, pieces: list[Piece]) -> Tensor:
    cuts = [states[piece.row, :, piece.first : piece.last] for piece in pieces]  # [heads, length, width] each
    return (cuts[0] if len(cuts) == 1 else torch.cat(cuts, dim=1)).unsqueeze(0)


def _causal(query: Tensor, key: Tensor, value: Tensor, *, window: int | None, scaling: float | None, dropout: float) -> Tensor:
    mask = _visible(query.shape[2], key.shape[2], window, query.device)
    grouped = query.shape[1] // key.shape[1]
    if mask is not None and grouped > 1:  # CUDA's fast kernels take grouped keys or a mask, not both
        key, value = (states.repeat_interleave(grouped, dim=1) for states in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "T S"] | None:
    """Which keys a query sees, the queries being the last of the keys; None where that is all earlier ones of as many."""
    if queries == keys and (window is None or window >= keys):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)

"""The one attention function of the language models: causal within each document of `Documents`, whatever the family.

Registered with transformers' AttentionInterface under `NAME`, once a model; nothing is switched between training and generation. In training the
decoder's call brings `document_pieces` and the stand-in mask, which transformers passes on untouched instead of building one; without pieces
(generation, plain use of the model) the function is transformers' own SDPA with transformers' own masks. Knows no model.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlm.backbones.language.documents import PADDED, STEP, Call, Calls, Piece, calls_of, gathered
from vlm.errors import ConfigError
from vlm.types import Documents

log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
NAME = "vlm_documents"
WITHOUT_EFFECT = {
    "position_ids",
    "use_cache",
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "needed",  # the last layer's; see `vlm.backbones.language.last_layer`
}


@dataclass(frozen=True)
class Varlen:
    """The same places as CUDA's variable-length kernels take them: queries as they lie, keys gathered for each document.

    Attributes:
        query_starts: Cumulative lengths of the documents, shape [documents + 1], int32.
        key_starts: Cumulative lengths of what each document sees, shape [documents + 1], int32.
        keys: Places of those keys in the flattened rows, shape [keys]; None where every document sees itself alone.
        longest_query: Tokens of the longest document.
        longest_key: Tokens of the longest document with all that it sees.
    """

    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor | None
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Pieces:
    """The documents of a batch, read off the device once a forward pass.

    Attributes:
        places: A place for each document; empty where every row is one document.
        varlen: The same for variable-length kernels; None where there are none, as on CPU.
        calls: The same as calls of SDPA; None where variable-length kernels are tried first.
    """

    places: tuple[Piece, ...] = ()
    varlen: Varlen | None = None
    calls: Calls | None = None


def register() -> None:
    """Make the function known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # Outside of compiled graphs: the places of documents are others in each batch, and a graph would be made for each.
    AttentionInterface.register(NAME, torch.compiler.disable(document_attention))
    AttentionMaskInterface.register(NAME, sdpa_mask)


def pieces_of(documents: Documents) -> Pieces:
    """Places of the documents."""
    if documents.is_one_per_row:
        return Pieces()
    length = documents.positions.shape[1]
    prefix = [-1] * (len(documents.starts) - 1) if documents.prefix is None else documents.prefix.tolist()
    places: list[Piece] = []
    for i, (start, end) in enumerate(pairwise(documents.starts.tolist())):
        row, first = divmod(start, length)
        if prefix[i] >= i:
            raise ValueError(f"Document {i} has document {prefix[i]} as its prefix; a prefix comes earlier in the batch.")
        parent = places[prefix[i]] if prefix[i] >= 0 else None
        places.append(Piece(row, first, first + end - start, (*parent.path, parent._replace(path=())) if parent else ()))
    device = documents.starts.device
    if device.type == "cuda":
        return Pieces(tuple(places), varlen=varlen_of(places, length, device))
    return Pieces(tuple(places), calls=calls_of(places, length, device))


def varlen_of(places: Sequence[Piece], length: int, device: torch.device) -> Varlen:
    """Places of documents in rows of `length` as variable-length kernels take them."""
    queries = [place.last - place.first for place in places]
    seen = [[*place.path, place] for place in places]
    keys = [sum(piece.last - piece.first for piece in pieces) for pieces in seen]
    gathered = None
    if keys != queries:
        spans = [torch.arange(piece.row * length + piece.first, piece.row * length + piece.last) for pieces in seen for piece in pieces]
        gathered = torch.cat(spans).to(device)
    query_starts, key_starts = (torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device) for sizes in (queries, keys))
    return Varlen(query_starts, key_starts, gathered, max(queries), max(keys))


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
    document_pieces: Pieces | None = None,
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
        document_pieces: Places of the documents; None outside of training.
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

    if not document_pieces.places:
        return _causal(query, key, value, window=sliding_window, scaling=scaling, dropout=dropout).transpose(1, 2).contiguous(), None
    if torch.is_autocast_enabled(query.device.type):  # rotary angles in fp32 make fp32 of queries and keys; SDPA casts by itself, the kernel does not
        query, key, value = (states.to(torch.get_autocast_dtype(query.device.type)) for states in (query, key, value))
    varlen = document_pieces.varlen
    if varlen is not None and not dropout and query.dtype in HALF:
        kind = (query.shape[1], key.shape[1], query.shape[3], varlen.keys is not None, sliding_window is not None)
        if _is_exact(query.device, query.dtype, *kind):
            return _by_varlen(query, key, value, varlen, window=sliding_window, scaling=scaling), None
    narrow = sliding_window is not None and sliding_window < PADDED  # such a window needs a mask even of a document alone: none longer than it
    calls = None if narrow else document_pieces.calls
    calls = calls or calls_of(document_pieces.places, query.shape[2], query.device, step=1 if narrow else STEP)
    return _by_calls(query, key, value, calls, window=sliding_window, scaling=scaling, dropout=dropout), None


def _by_calls(
    query: Tensor, key: Tensor, value: Tensor, calls: Calls, *, window: int | None, scaling: float | None, dropout: float = 0.0
) -> Float[Tensor, "B T heads width"]:
    """A few calls of SDPA for the documents of all rows."""
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # [B T, heads, width]
    if query.device.type == "cpu":  # once for all calls; see `_causal`
        q, k, v = (states.float() for states in (q, k, v))
    parts = []
    for call in calls.calls:
        states = (gathered(q, call.queries), gathered(k, call.keys), gathered(v, call.keys))
        mask = _mask(call, window)
        out = _causal(*(each.transpose(1, 2) for each in states), mask=mask, window=window, scaling=scaling, dropout=dropout)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return gathered(_join(parts), calls.back).unflatten(0, (query.shape[0], query.shape[2])).to(query.dtype)


def _mask(call: Call, window: int | None) -> Bool[Tensor, "n 1 L S"] | None:
    """Which keys the documents of a call see, where some have a path of padded length; None where `_causal` knows."""
    if call.first_key is None:
        return None
    queries, keys = call.queries.shape[1], call.keys.shape[1]
    visible = _visible(queries, keys, window, call.keys.device)
    own = torch.arange(keys, device=call.keys.device) >= call.first_key[:, None, None, None]
    return own if visible is None else own & visible


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _by_varlen(
    query: Tensor, key: Tensor, value: Tensor, varlen: Varlen, *, window: int | None, scaling: float | None
) -> Float[Tensor, "B T heads width"]:
    """One call of a variable-length kernel for all documents of all rows."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # [B T, heads, width]
    if varlen.keys is not None:
        k, v = k.index_select(0, varlen.keys), v.index_select(0, varlen.keys)
    out = varlen_attn(
        q,
        k,
        v,
        varlen.query_starts,
        varlen.key_starts,
        varlen.longest_query,
        varlen.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # a pair only where the sums of exponents are asked for
    return out.unflatten(0, (query.shape[0], query.shape[2]))


@cache
def _is_exact(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, width: int, with_prefix: bool, with_window: bool) -> bool:
    """True if the variable-length kernel of this machine computes what one call of SDPA a document does, tried once on small random numbers.

    Kernels differ in how they align the causal mask where there are more keys than queries, and older torch has none: then documents are looped over,
    which is slower and right.
    """
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(2, count, 24, width) for count in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(*shape, generator=generator, device=device, dtype=dtype) for shape in shapes)
    trunk = Piece(0, 0, 9)
    branches = [Piece(0, 9, 17, (trunk,) if with_prefix else ()), Piece(0, 17, 24, (trunk,) if with_prefix else ())]
    places, window = [trunk, *branches, Piece(1, 0, 24)], 6 if with_window else None
    try:
        seen = _by_varlen(q, k, v, varlen_of(places, 24, device), window=window, scaling=None)
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        log.warning("warning: packed rows are attended to document by document, because the variable-length kernel refuses: %s", error)
        return False
    wanted = _by_calls(q.float(), k.float(), v.float(), calls_of(places, 24, device), window=window, scaling=None)
    exact = bool((seen.float() - wanted).abs().max() < 0.05)
    if not exact:
        log.warning("warning: packed rows are attended to document by document, because the variable-length kernel is not exact here")
    return exact


def _causal(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None, scaling: float | None, dropout: float, mask: Tensor | None = None
) -> Tensor:
    if mask is None:
        mask = _visible(query.shape[2], key.shape[2], window, query.device)
    grouped, dtype = query.shape[1] // key.shape[1], query.dtype
    on_cpu = query.device.type == "cpu"
    if on_cpu:  # fp32, even under autocast: in bf16, documents of 16 to 100 tokens take three times as long, of 500 as long (AVX-512 bf16)
        query, key, value = (states.float() for states in (query, key, value))
    elif mask is not None and grouped > 1:  # CUDA's fast kernels take grouped keys or a mask, not both
        key, value = (states.repeat_interleave(grouped, dim=1) for states in (key, value))
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu") and not on_cpu):
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    return out.to(dtype)


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "T S"] | None:
    """Which keys a query sees, the queries being the last of the keys; None where that is all earlier ones of as many."""
    if queries == keys and (window is None or window >= keys):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)

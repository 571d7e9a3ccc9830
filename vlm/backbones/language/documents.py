"""The documents of packed rows as few calls of attention: documents of about the same length are rows of one call. Knows places, no model and no scores.

On a CPU an empty call costs as much as the scores of 40 tokens, and cutting and joining rows document by document as much again. So places are gathered
once for each length. Short documents are padded to a multiple of `STEP`, long ones never: how a document is computed depends on no other document, to
the last bit. No mask spans a row of several documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEP = 16
PADDED = 128  # tokens: forward and backward, an empty call takes 0.15 ms, one of 128 tokens 2.0, of 256 7.0 (2 CPU cores, 8 heads of 64)


class Piece(NamedTuple):
    """Where a document lies in the rows, and the places of the documents that it sees as well, from the root of the message tree on."""

    row: int
    first: int
    last: int
    path: tuple["Piece", ...] = ()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.last - self.first


@dataclass(frozen=True)
class Call:
    """Documents of one call, n of them. All numbers are places in the flattened rows; padding repeats a place of the same document.

    Attributes:
        queries: Tokens of each document, padded on the right.
        keys: Tokens that each sees: those of its path, padded on the left, and then the same as `queries`.
        first_key: Number of padded keys on the left of each; None where no document has a path.
    """

    queries: Int[Tensor, "n L"]
    keys: Int[Tensor, "n S"]
    first_key: Int[Tensor, " n"] | None

    def to(self, device: torch.device | str) -> "Call":
        """The same on another device."""
        return Call(self.queries.to(device), self.keys.to(device), None if self.first_key is None else self.first_key.to(device))


@dataclass(frozen=True)
class Calls:
    """All calls of a batch.

    Attributes:
        calls: The calls.
        back: For each token of the flattened rows, its place in the outputs of the calls, one after the other.
    """

    calls: tuple[Call, ...]
    back: Int[Tensor, " tokens"]


def calls_of(places: Sequence[Piece], length: int, device: torch.device | str = "cpu", *, step: int = STEP) -> Calls:
    """The calls for documents in rows of `length`; short ones are padded to a multiple of `step`."""
    groups: dict[tuple[int, int], list[Piece]] = {}
    for place in places:
        groups.setdefault((_padded(place.size, step), _padded(sum(parent.size for parent in place.path), step)), []).append(place)
    calls, back, offset = [], torch.empty(sum(place.size for place in places), dtype=torch.long), 0
    for (size, path_size), documents in groups.items():
        own = [_tokens(place, length) for place in documents]
        for i, tokens in enumerate(own):
            back[tokens] = torch.arange(offset + i * size, offset + i * size + len(tokens))
        offset += len(documents) * size
        queries = torch.stack([_fill(tokens, 0, size - len(tokens)) for tokens in own])
        calls.append(_call(documents, queries, length, path_size).to(device))
    return Calls(tuple(calls), back.to(device))


def gathered(states: Float[Tensor, "tokens heads width"], places: Int[Tensor, "..."]) -> Float[Tensor, "... heads width"]:
    """The states at places. An embedding, because the gradient of plain indexing is slower on CPU."""
    return torch.nn.functional.embedding(places, states.flatten(1)).unflatten(-1, states.shape[1:])


def _padded(tokens: int, step: int) -> int:
    """The length that so many tokens are padded to."""
    return tokens if tokens > PADDED else -(-tokens // step) * step


def _tokens(place: Piece, length: int) -> Int[Tensor, " tokens"]:
    return torch.arange(place.row * length + place.first, place.row * length + place.last)


def _fill(tokens: Int[Tensor, " tokens"], left: int, right: int) -> Int[Tensor, " padded"]:
    """Padding is a place of the same document: what stands there is not seen, and must be finite."""
    return torch.cat([tokens[:1].expand(left), tokens, tokens[:1].expand(right)])


def _call(documents: Sequence[Piece], queries: Int[Tensor, "n L"], length: int, path_size: int) -> Call:
    if not path_size:
        return Call(queries, queries, None)
    paths = [torch.cat([_tokens(parent, length) for parent in place.path]) for place in documents]
    missing = [path_size - len(path) for path in paths]
    before = torch.stack([_fill(path, number, 0) for path, number in zip(paths, missing, strict=True)])
    return Call(queries, torch.cat([before, queries], dim=1), torch.tensor(missing))

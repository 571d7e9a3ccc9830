"""Documents as calls of SDPA, against a dense mask of all rows by definition."""

import pytest
import torch
from torch import Tensor

from vlm.backbones.language.attention import Pieces, document_attention
from vlm.backbones.language.documents import PADDED, Piece, calls_of

TRUNK = Piece(0, 0, 6)
BRANCH = Piece(0, 6, 13, (TRUNK,))
TWIG = Piece(0, 13, 20, (TRUNK, BRANCH))
TREE = (TRUNK, BRANCH, TWIG, Piece(0, 20, 24))
SINGLE = (Piece(1, 0, 9), Piece(1, 9, 24))
BRANCH_IN_THE_OTHER_ROW = (Piece(0, 0, 24), Piece(1, 0, 11, (Piece(0, 0, 24),)), Piece(1, 11, 24))
TREE_LATER = (Piece(0, 0, 9), Piece(0, 9, 24), Piece(1, 0, 6), Piece(1, 6, 13, (Piece(1, 0, 6),)), Piece(1, 13, 24))
CASES = {
    "tree": (*TREE, *SINGLE),
    "tree later": TREE_LATER,
    "branch in the other row": BRANCH_IN_THE_OTHER_ROW,
    "equal sizes": tuple(Piece(row, first, first + 6) for row in range(2) for first in range(0, 24, 6)),
}


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries of four heads, keys and values of two."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, heads, 24, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)]


def by_definition(query: Tensor, key: Tensor, value: Tensor, *, places: tuple[Piece, ...], window: int | None = None) -> Tensor:
    """Softmax over the tokens of a document's path and its own earlier ones, in double precision."""
    query, key, value = (x.double().transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    seen = torch.zeros(48, 48, dtype=torch.bool)
    for place in places:
        path = torch.cat([torch.arange(piece.row * 24 + piece.first, piece.row * 24 + piece.last) for piece in (*place.path, place)])
        distance = torch.arange(len(path))[:, None] - torch.arange(len(path))
        near = (distance >= 0) & (distance < (window or 48))
        seen[path[-place.size :, None], path] = near[-place.size :]
    key, value = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhw,khw->hqk", query, key) / 8**0.5
    out = torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)
    return out.unflatten(0, (2, 24))


def attend(*inputs: Tensor, places: tuple[Piece, ...], window: int | None = None) -> Tensor:
    pieces = Pieces(places, calls=calls_of(places, inputs[0].shape[2]))
    return document_attention(torch.nn.Linear(1, 1), *inputs, None, document_pieces=pieces, sliding_window=window)[0]


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_those_of_the_definition(case, window):
    results = []
    for attention in (attend, by_definition):
        inputs = states()
        out = attention(*inputs, places=CASES[case], window=window)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        results.append((out.double(), *(g.double() for g in torch.autograd.grad((out * weights).sum(), inputs))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_short_documents_of_about_one_length_share_a_call_that_no_mask_is_needed_for():
    calls = calls_of([Piece(0, first, first + size) for first, size in ((0, 30), (30, 17), (47, 32), (79, 33))], 112).calls
    assert [tuple(call.queries.shape) for call in calls] == [(3, 32), (1, 48)]
    assert all(call.first_key is None for call in calls)


def test_branches_share_a_call_beside_that_of_their_trunks():
    first, second = Piece(0, 0, 50), Piece(1, 0, 49)
    places = (first, Piece(0, 50, 60, (first,)), Piece(0, 60, 72, (first,)), second, Piece(1, 49, 60, (second,)), Piece(1, 60, 72))
    trunks, branches, padding = calls_of(places, 72).calls
    assert tuple(trunks.queries.shape) == (2, 64)
    assert (tuple(branches.queries.shape), tuple(branches.keys.shape)) == ((3, 16), (3, 80))
    assert branches.first_key.tolist() == [14, 14, 15]
    assert tuple(padding.queries.shape) == (1, 16)


def test_what_else_is_in_the_rows_changes_no_bit_of_a_document():
    inputs = [x.detach() for x in states()]
    seen = attend(*inputs, places=(Piece(0, 0, 9), Piece(0, 9, 24), Piece(1, 0, 24)))
    other = attend(*inputs, places=(Piece(0, 0, 9), Piece(0, 9, 12), Piece(0, 12, 24), Piece(1, 0, 5), Piece(1, 5, 24)))
    assert torch.equal(seen[0, :9], other[0, :9])


def test_long_documents_are_never_padded():
    sizes = (PADDED + 1, PADDED + 2, PADDED + 1)
    starts = (0, PADDED + 1, 2 * PADDED + 3)
    calls = calls_of([Piece(0, first, first + size) for first, size in zip(starts, sizes, strict=True)], sum(sizes)).calls
    assert [tuple(call.queries.shape) for call in calls] == [(2, PADDED + 1), (1, PADDED + 2)]


def test_under_autocast_attention_computes_in_fp32_and_answers_in_bf16():
    """In bf16, CPUs take three times as long for short documents; rounding happens once, at the end."""
    places, inputs = CASES["tree"], [x.detach() for x in states(torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(*inputs, places=places)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_definition(*inputs, places=places).float().bfloat16())

"""Documents as calls of SDPA, against a dense mask of all rows by definition."""

import pytest
import torch
from torch import Tensor

from vlm.backbones.language.attention import Pieces, document_attention
from vlm.backbones.language.documents import LONGEST, Piece, calls_of

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


def by_definition(query: Tensor, key: Tensor, value: Tensor, places: tuple[Piece, ...]) -> Tensor:
    """Softmax over the tokens of a document's path and its own earlier ones, in double precision."""
    query, key, value = (x.double().transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    seen = torch.zeros(48, 48, dtype=torch.bool)
    for place in places:
        own = slice(place.row * 24 + place.first, place.row * 24 + place.last)
        seen[own, own] = torch.ones(place.size, place.size).tril().bool()
        for parent in place.path:
            seen[own, parent.row * 24 + parent.first : parent.row * 24 + parent.last] = True
    key, value = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhw,khw->hqk", query, key) / 8**0.5
    out = torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)
    return out.unflatten(0, (2, 24))


def attend(places: tuple[Piece, ...], longest: int, *inputs: Tensor) -> Tensor:
    pieces = Pieces(places, calls=calls_of(places, longest=longest))
    return document_attention(torch.nn.Linear(1, 1), *inputs, None, document_pieces=pieces)[0]


@pytest.mark.parametrize("longest", [0, 7, 13, 20, 24, LONGEST])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_those_of_the_definition(case, longest):
    results = []
    for attention in (lambda *x: attend(CASES[case], longest, *x), lambda *x: by_definition(*x, CASES[case])):
        inputs = states()
        out = attention(*inputs)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
        results.append((out.double(), *(g.double() for g in torch.autograd.grad((out * weights).sum(), inputs))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_short_documents_are_one_call_and_no_mask_is_longer_than_the_limit():
    assert [call.size for call in calls_of((*TREE, *SINGLE))] == [24, 24]
    places = tuple(Piece(0, first, first + 30) for first in range(0, 3_000, 30))
    calls = calls_of(places)
    assert {call.size for call in calls} == {120}
    assert all(call.mask is not None and len(call.mask) <= LONGEST for call in calls)


def test_documents_longer_than_the_limit_have_a_call_each_and_no_mask():
    trunk = Piece(0, 0, LONGEST)
    calls = calls_of((trunk, Piece(0, LONGEST, LONGEST + 9, (trunk,)), Piece(0, LONGEST + 9, 3 * LONGEST)))
    assert [(call.size, call.keys, call.mask) for call in calls] == [(LONGEST, (0,), None), (9, (0, 1), None), (2 * LONGEST - 9, (2,), None)]


def test_a_tree_whose_documents_lie_apart_is_attended_to_document_by_document():
    trunk = Piece(0, 0, 4)
    calls = calls_of((trunk, Piece(0, 4, 8), Piece(0, 8, 12, (trunk,)), Piece(0, 12, 20)))
    assert [call.keys for call in calls] == [(0,), (1,), (0, 2), (3,)]


def test_a_call_never_spans_two_rows():
    assert [call.size for call in calls_of((Piece(0, 0, 4), Piece(0, 4, 8), Piece(1, 0, 3), Piece(1, 3, 8)))] == [8, 8]


@pytest.mark.parametrize("window", [3, LONGEST])
def test_a_window_narrower_than_a_call_is_kept(window):
    places, inputs = CASES["tree"], states()
    pieces = Pieces(places, calls=calls_of(places))
    module = torch.nn.Linear(1, 1)
    seen, _ = document_attention(module, *inputs, None, document_pieces=pieces, sliding_window=window)
    alone, _ = document_attention(module, *inputs, None, document_pieces=Pieces(places, calls=calls_of(places, longest=0)), sliding_window=window)
    torch.testing.assert_close(seen, alone)
    assert torch.equal(seen, alone) == (window == 3)


def test_under_autocast_attention_computes_in_fp32_and_answers_in_bf16():
    """In bf16, CPUs take three times as long for short documents; rounding happens once, at the end."""
    places, inputs = CASES["tree"], [x.detach() for x in states(torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(places, LONGEST, *inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_definition(*inputs, places).float().bfloat16())

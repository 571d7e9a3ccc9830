"""The last layer's feed-forward part at needed places, against the whole layer."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm.training.recompute import recompute
from vlm.types import Documents

NEEDED = torch.tensor([2, 3, 8, 13])  # of 2 rows of 9
LENGTHS = Documents.one_per_row(2, 9)


def embeddings(lm) -> torch.Tensor:
    ids = torch.randint(20, 380, (2, 9), generator=torch.Generator().manual_seed(4))
    return lm.embed(ids).detach().requires_grad_()


def states_and_gradients(lm, needed: torch.Tensor | None) -> list[torch.Tensor]:
    embeds = embeddings(lm)
    lm.zero_grad()
    states = lm(embeds, LENGTHS, needed=needed).flatten(0, 1)[NEEDED]
    states.square().sum().backward()
    weights = [weight.grad.clone() for weight in lm.blocks()[-1].parameters()]
    return [states.detach(), embeds.grad, *weights]


def test_states_and_gradients_are_those_of_the_whole_layer(tiny, name):
    lm = tiny(name)
    for ours, whole in zip(states_and_gradients(lm, NEEDED), states_and_gradients(lm, None), strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-6, rtol=1e-5)


def test_what_is_computed_again_is_the_same(tiny):
    lm = tiny("tiny-llama")
    kept = states_and_gradients(lm, NEEDED)
    recompute(lm.blocks())
    for again, first in zip(states_and_gradients(lm, NEEDED), kept, strict=True):
        assert torch.equal(again, first)


def test_products_at_other_places_are_spared(tiny):
    lm = tiny("tiny-llama")
    counts = []
    for needed in (None, NEEDED):
        with FlopCounterMode(display=False) as counter:
            lm(embeddings(lm), LENGTHS, needed=needed)
        counts.append(counter.get_total_flops())
    mlp = sum(weight.numel() for weight in lm.blocks()[-1].mlp.parameters())
    assert counts[0] - counts[1] == 2 * mlp * (18 - len(NEEDED))


def test_a_call_without_places_after_one_with_them_is_whole(tiny):
    lm = tiny("tiny-phi")
    whole = lm(embeddings(lm), LENGTHS)
    lm(embeddings(lm), LENGTHS, needed=NEEDED)
    assert torch.equal(lm(embeddings(lm), LENGTHS), whole)

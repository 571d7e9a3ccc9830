"""Rows of a batch against `generate`, one prompt at a time."""

from dataclasses import replace

import pytest
import torch

from vlm.models.answer_rows import Ask, Piece, answer, shared
from vlm.models.generate import generate, prepare
from vlm.models.sampling import Sampling

LENGTHS = (3, 12, 7)


def answered(model, prompts, samplings, *, streamed=False, **options) -> tuple[list[list[Piece]], list[int]]:
    """The pieces of each row, and which row each piece was of, in the order in which they were told."""
    told: list[list[Piece]] = [[] for _ in prompts]
    order: list[int] = []

    def tell(i: int, piece: Piece) -> None:
        told[i].append(piece)
        order.append(i)

    rows = [
        Ask(prepare(model, prompt, 1), sampling, lambda piece, i=i: tell(i, piece), streamed, **options)
        for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    answer(model, rows)
    return told, order


@pytest.mark.parametrize("streamed", [False, True])
def test_each_row_is_the_answer_of_its_prompt_alone_up_to_its_own_length(compose, prompts, language, streamed):
    model = compose(language=language)
    samplings = [Sampling(max_new_tokens=length) for length in LENGTHS]
    told, _ = answered(model, prompts, samplings, streamed=streamed)
    alone = [generate(model, [prompt], sampling)[0] for prompt, sampling in zip(prompts, samplings, strict=True)]
    assert ["".join(piece.text for piece in pieces) for pieces in told] == alone
    assert all([piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1) and pieces[-1].finish for pieces in told)
    assert all(len(pieces) == 1 for pieces in told) is not streamed


def test_rows_have_stop_strings_and_seeds_of_their_own(compose, prompts):
    model = compose()
    whole = generate(model, prompts, Sampling(max_new_tokens=12))
    samplings = [Sampling(12, stop=(text[4:6],)) for text in whole]
    for streamed in (False, True):
        told, _ = answered(model, prompts, samplings, streamed=streamed)
        assert ["".join(piece.text for piece in pieces) for pieces in told] == [text[: text.find(text[4:6])].strip() for text in whole]
        assert [pieces[-1].finish for pieces in told] == ["stop"] * 3
    samplings = [Sampling(12, temperature=1.5, seed=seed) for seed in (1, 2, 3)]
    told, _ = answered(model, prompts, samplings)
    assert [pieces[0].text for pieces in told] == [generate(model, [prompt], mine)[0] for prompt, mine in zip(prompts, samplings, strict=True)]


def test_a_row_that_ends_early_is_told_early_and_says_how_it_ended(compose, prompts):
    model = compose()
    told, order = answered(model, prompts, [Sampling(max_new_tokens=length) for length in LENGTHS])
    assert order == [0, 2, 1]
    assert [(pieces[0].finish, pieces[0].num_tokens) for pieces in told] == [("length", length) for length in LENGTHS]


def test_an_end_token_is_counted_and_is_no_part_of_the_text(compose, prompts):
    model = compose()
    eos = model.language.tokenizer.eos_token_id

    def end(module, inputs, logits):
        logits[..., eos] += torch.tensor([0.0, 1e6, 0.0])[:, None]
        return logits

    model.language.model.get_output_embeddings().register_forward_hook(end)
    told, _ = answered(model, prompts, [Sampling(max_new_tokens=4)] * 3)
    assert told[1] == [Piece("", "stop", 1)]
    assert [told[i][0].finish for i in (0, 2)] == ["length", "length"]


def test_a_batch_ends_when_nobody_waits_for_its_rows(compose, prompts):
    model, steps = compose(), []
    model.language.model.register_forward_hook(lambda *_: steps.append(1))
    told, _ = answered(model, prompts, [Sampling(max_new_tokens=100)] * 3, is_gone=lambda: len(steps) >= 3)
    assert told == [[], [], []]
    assert len(steps) == 3


def test_rows_share_how_tokens_are_drawn_and_nothing_that_is_each_rows_own():
    greedy, hot = Sampling(top_p=0.5, top_k=3, seed=1, max_new_tokens=3), Sampling(temperature=1.0)
    assert shared(greedy) == shared(Sampling()) != shared(Sampling(repetition_penalty=1.1))
    assert shared(hot) == shared(replace(hot, max_new_tokens=9, seed=3, stop="x")) != shared(replace(hot, top_p=0.5))
    assert shared(hot) != shared(greedy)

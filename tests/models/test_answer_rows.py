"""Rows of a batch against `generate`, one prompt at a time."""

from dataclasses import replace

import pytest
import torch

from vlm.models.answer_rows import Ask, Piece, answer, shared
from vlm.models.generate import embed_prompts, generate, left_padded, prepare
from vlm.models.sampling import Sampling, settings
from vlm.models.token_scores import Candidate, Step, StepScores, TokenText

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


def plain_log_probs(model, prompt, sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of the answer to a prompt alone, and the log-probabilities of all tokens at each, by one forward pass without a cache."""
    embeds, mask = left_padded(embed_prompts(model, [prompt], sampling.max_new_tokens))
    with torch.inference_mode():
        ids = model.language.generate(embeds, mask, **settings(model, sampling, 1))
        logits = model.language.model(inputs_embeds=torch.cat([embeds, model.language.embed(ids)], 1), use_cache=False).logits
    return ids[0], logits[0, embeds.shape[1] - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "repetition_penalty": 1.3, "top_k": 9}], ids=["greedy", "drawn"])
def test_log_probabilities_are_the_models_own_whatever_is_done_to_the_draw(compose, prompts, language, drawn):
    model = compose(language=language)
    samplings = [Sampling(max_new_tokens=length, seed=length, **drawn) for length in LENGTHS]
    for streamed in (False, True):
        told, _ = answered(model, prompts, samplings, streamed=streamed, logprobs=4)
        for pieces, prompt, sampling in zip(told, prompts, samplings, strict=True):
            ids, expected = plain_log_probs(model, prompt, sampling)
            steps = [step for piece in pieces for step in piece.steps]
            assert len(steps) == pieces[-1].num_tokens == len(ids)
            assert [step.token.utf8 for step in steps] == list(map(TokenText(model.language.tokenizer).utf8, ids.tolist()))
            assert [step.token.log_prob for step in steps] == pytest.approx(expected.gather(1, ids[:, None])[:, 0].tolist(), abs=1e-4)
            likeliest = torch.tensor([[one.log_prob for one in step.likeliest] for step in steps])
            torch.testing.assert_close(likeliest, expected.topk(4).values, atol=1e-4, rtol=0)
            assert drawn or all(step.likeliest[0] == step.token for step in steps)


def test_who_asks_for_no_log_probabilities_gets_none_and_pays_for_none(compose, prompts, monkeypatch):
    model, told = compose(), []
    looked_at = []
    monkeypatch.setattr(StepScores, "step", lambda self, row, token, num: looked_at.append((row, num)) or Step(Candidate(b"", 0.0), ()))
    prepared = [prepare(model, prompt, 1) for prompt in prompts]
    answer(
        model, [Ask(prompt, Sampling(max_new_tokens=2), told.append, logprobs=asked) for prompt, asked in zip(prepared, (None, 0, None), strict=True)]
    )
    assert looked_at == [(1, 0)] * 2
    assert sorted(len(piece.steps) for piece in told) == [0, 0, 2]
    monkeypatch.setattr("vlm.models.answer_rows.StepScores", None)  # not even made
    answer(model, [Ask(prompt, Sampling(max_new_tokens=2), told.append) for prompt in prepared])

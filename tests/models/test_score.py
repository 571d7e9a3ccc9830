"""Log-probabilities of answers against a plain forward pass of each answer alone."""

import pytest
import torch
from plain_forward import plain_log_probs

from vlm.errors import DataFormatError
from vlm.models.generate import ask
from vlm.models.score import answer_log_probs, score

ANSWERS = ["blue", "A yellow rectangle.", "A yellow square", "No", "No, there is a green triangle."]


def test_each_token_of_an_answer_has_the_log_probability_of_a_plain_forward_pass(compose, prompts, family):
    model = compose(**family)
    for prompt in prompts:
        scores = model.score(prompt, ANSWERS)
        assert [one.answer for one in scores] == ANSWERS
        for one in scores:
            expected = plain_log_probs(model, prompt, one.answer)
            torch.testing.assert_close(torch.tensor(one.token_log_probs), expected, atol=1e-4, rtol=1e-5)
            assert one.log_prob == pytest.approx(float(expected.sum()), abs=1e-4)
            assert one.mean_log_prob == pytest.approx(float(expected.mean()), abs=1e-4)
            assert len(one.tokens) == len(expected)
            assert "".join(one.tokens).strip().startswith(one.answer)


def test_a_prompt_may_be_a_question_or_pictures_and_a_question(compose, picture):
    model = compose()
    assert model.score("Yes?", ["Yes"]) == score(model, ask([], "Yes?"), ["Yes"])
    assert model.score(([picture(1)], "Is it red?"), ["Yes", "No"]) == score(model, ask([picture(1)], "Is it red?"), ["Yes", "No"])


def test_answers_that_are_no_list_or_none_are_refused(compose):
    with pytest.raises(DataFormatError, match="The answers are one text, 'Yes'; give a list"):
        compose().score("Yes?", "Yes")
    with pytest.raises(DataFormatError, match="There is no answer to score"):
        compose().score("Yes?", [])


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(compose):
    with pytest.raises(DataFormatError, match=r"prompt has \d{4} tokens and the answer may have 3; the language model reads 512"):
        compose().score("blue " * 1000, ["blue"])


@pytest.mark.parametrize(
    ("words", "match"), [(1500, r"the answer may have \d{4,5}; the language model reads 512"), (500_000, "has 2,500,0.. characters")]
)
def test_an_answer_beyond_the_context_is_refused_before_anything_is_made_of_it(compose, words, match):
    with pytest.raises(DataFormatError, match=match):
        compose().score("What?", ["blue " * words])


@pytest.mark.parametrize("vision", ["tiny-clip", "tiny-siglip"])
def test_log_probs_of_answers_are_those_of_plain_forward_passes(compose, prompts, language, vision):
    model = compose(vision=vision, language=language)
    expected = torch.stack([torch.stack([plain_log_probs(model, prompt, answer).sum() for answer in ANSWERS]) for prompt in prompts])
    torch.testing.assert_close(answer_log_probs(model, prompts, ANSWERS), expected, atol=1e-4, rtol=1e-5)


def test_log_probs_of_equal_answers_are_equal(compose, prompts):
    scores = answer_log_probs(compose(), prompts, ["blue", "blue", "No"])
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert not torch.equal(scores[:, 0], scores[:, 2])


def test_log_probs_with_sliding_and_full_layers_are_those_of_plain_forward_passes(compose, prompts):
    model = compose(language="tiny-qwen2")
    config = model.language.model.config
    config.sliding_window, config.layer_types = 6, ["sliding_attention", "full_attention"]
    for layer, kind in zip(model.language.blocks(), config.layer_types, strict=True):
        layer.self_attn.sliding_window = 6 if kind == "sliding_attention" else None
        layer.attention_type = layer.self_attn.layer_type = kind
    model.language.decoder.has_sliding_layers = True
    expected = torch.stack([torch.stack([plain_log_probs(model, prompt, answer).sum() for answer in ANSWERS]) for prompt in prompts])
    without_window = answer_log_probs(compose(language="tiny-qwen2"), prompts, ANSWERS)
    seen = answer_log_probs(model, prompts, ANSWERS)
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(seen, without_window, atol=1e-2)

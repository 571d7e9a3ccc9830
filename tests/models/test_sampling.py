"""Draws against softmax by hand, in distribution and in what they depend on; beams against an exhaustive search."""

import math
from collections import Counter

import pytest
import torch
from plain_forward import plain_logits

from vlm.errors import ConfigError
from vlm.models.generate import ask, generate, stream
from vlm.models.sampling import LOWEST_TEMPERATURE, Draw, Sampling, settings

NEW = 8
HOT = {"max_new_tokens": NEW, "temperature": 2.0, "top_p": 0.95}


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"num_beams": 0},
        {"seed": -1},
    ],
)
def test_settings_outside_of_their_ranges_are_refused(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=f"^{name} is {value}; "):
        Sampling(**values)


def test_an_empty_stop_string_and_drawn_beams_are_refused():
    with pytest.raises(ConfigError, match="an empty text would end every answer"):
        Sampling(stop=("a", ""))
    with pytest.raises(ConfigError, match="num_beams is 2; a beam search draws nothing"):
        Sampling(num_beams=2, temperature=1.0)


def test_one_stop_string_is_not_taken_for_its_letters():
    assert Sampling(stop="ab").stop == ("ab",)
    assert hash(Sampling(stop=["a", "b"])) == hash(Sampling(stop=("a", "b")))  # type: ignore[arg-type]


def test_settings_without_effect_are_named():
    assert Sampling(top_p=0.9, seed=1, repetition_penalty=1.1).idle == ("top_p", "seed")
    assert Sampling(top_p=0.9, seed=1, temperature=0.1).idle == ()


def frequencies(sampling: Sampling, scores: torch.Tensor, model: torch.nn.Module, rows: int = 4000) -> torch.Tensor:
    """How often each token is what the settings leave to choose."""
    processors = settings(model, sampling, rows)["logits_processor"]
    drawn = processors(torch.zeros(rows, 0, dtype=torch.long), scores.repeat(rows, 1)).argmax(-1)
    counts = Counter(drawn.tolist())
    return torch.tensor([counts[i] / rows for i in range(len(scores))])


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"temperature": 1.0}, [True] * 4),
        ({"temperature": 0.5}, [True] * 4),
        ({"temperature": 1.0, "top_k": 2}, [False, True, True, False]),
        ({"temperature": 1.0, "top_p": 0.8}, [False, True, True, False]),
    ],
)
def test_draws_follow_the_softmax(values, kept):
    scores = torch.tensor([0.1, 2.0, 1.5, -1.0])
    expected = torch.where(torch.tensor(kept), scores / values["temperature"], -math.inf).softmax(0)
    seen = frequencies(Sampling(**values), scores, torch.nn.Linear(1, 1))
    assert (seen - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)
    assert (seen[expected == 0] == 0).all()


def test_the_lowest_temperature_draws_the_most_likely_token(compose):
    scores = torch.tensor([-300.0, 299.9, 300.0, 0.0])
    assert frequencies(Sampling(temperature=LOWEST_TEMPERATURE), scores, compose(), rows=10).tolist() == [0, 0, 1, 0]


def test_draws_of_a_row_depend_on_its_seed_alone():
    scores = torch.randn(3, 50)
    together = Draw([5, 6, 7], torch.device("cpu"))(torch.zeros(3, 0, dtype=torch.long), scores)
    alone = Draw([6], torch.device("cpu"))(torch.zeros(1, 0, dtype=torch.long), scores[1:2])
    assert torch.equal(together[1:2], alone)


def test_draws_without_a_seed_follow_torchs_random_state(compose, prompts):
    model, hot = compose(), Sampling(**HOT)
    torch.manual_seed(0)
    first = generate(model, prompts, hot)
    torch.manual_seed(0)
    assert generate(model, prompts, hot) == first
    assert generate(model, prompts, hot) != first


def test_a_seed_gives_each_prompt_its_answer_alone_in_a_batch_and_streamed(compose, prompts):
    model, hot = compose(), Sampling(seed=3, **HOT)
    answers = generate(model, prompts, hot)
    torch.rand(1)
    before = torch.get_rng_state()
    assert [generate(model, [prompt], hot)[0] for prompt in prompts] == answers
    assert ["".join(stream(model, prompt, hot)).strip() for prompt in prompts] == answers
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(model, prompts, Sampling(seed=4, **HOT)) != answers


def test_a_penalty_counts_from_the_first_token_of_each_row_of_a_left_padded_batch(compose, prompts, language):
    model, penalized = compose(language=language), Sampling(max_new_tokens=16, repetition_penalty=5.0)
    answers = generate(model, prompts, penalized)
    assert answers == [generate(model, [prompt], penalized)[0] for prompt in prompts]
    assert answers != generate(model, prompts, Sampling(max_new_tokens=16))


def test_as_many_beams_as_tokens_find_the_best_answer_of_two_tokens(compose, picture):
    model = compose(language="tiny-qwen2")
    prompt, tokenizer = ask([picture(1)], "What color?"), model.language.tokenizer
    first = plain_logits(model, prompt, [])[-1].log_softmax(-1)
    usual = [token for token in first.topk(24).indices.tolist() if token not in tokenizer.all_special_ids]
    second = {token: plain_logits(model, prompt, [token])[-1].log_softmax(-1) for token in usual}
    best = max(((token, int(row.argmax())) for token, row in second.items()), key=lambda pair: first[pair[0]] + second[pair[0]][pair[1]])
    expected = tokenizer.decode(list(best), skip_special_tokens=True).strip()
    answer = generate(model, [prompt], Sampling(max_new_tokens=2, num_beams=24))[0]
    assert answer == expected
    assert generate(model, [prompt, ask([], "Is there a red square?")], Sampling(max_new_tokens=2, num_beams=24))[0] == expected

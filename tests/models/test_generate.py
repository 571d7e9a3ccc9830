"""Answers against plain recomputation: no cache, no padding, no batch, one token after the other."""

import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vlm.data.chat import encode_chat
from vlm.data.image import to_tiles
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import Message
from vlm.models.generate import Prompt, Sampling, _warn_without_question, answer_log_probs, ask, generate, left_padded, stream
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import IGNORE_INDEX, ChatBatch, Documents

NEW = 8
SHORT = Sampling(max_new_tokens=NEW)


def batch_of(model: VisionLanguageModel, prompt: Prompt, messages: tuple[Message, ...]) -> ChatBatch:
    """One conversation as training would see it."""
    encoded = encode_chat(
        messages,
        template=model.template,
        tokenizer=model.language.tokenizer,
        image_token_id=model.language.image_token_id,
        tokens_per_image=[model.tokens_per_tile] * len(prompt.images),
    )
    size = model.image_policy.size
    tiles = [to_tiles(image, model.image_policy)[0] for image in prompt.images]
    pixels = torch.cat([torch.zeros(0, 3, size, size, dtype=torch.uint8), *tiles])
    documents = Documents.one_per_row(1, len(encoded.ids))
    return ChatBatch(ids=encoded.ids[None], labels=encoded.labels[None], documents=documents, pixels=pixels, num_samples=1)


@torch.no_grad()
def greedy(model: VisionLanguageModel, prompt: Prompt, *, count: int = NEW) -> str:
    """The most likely token each time, everything computed anew for each."""
    batch, tokens = batch_of(model, prompt, prompt.messages), []
    ends = {model.language.tokenizer.convert_tokens_to_ids(token) for token in (model.language.tokenizer.eos_token, *model.template.stop)}
    while len(tokens) < count and not ends & set(tokens):
        ids = torch.cat([batch.ids, torch.tensor([tokens], dtype=torch.long)], dim=1)
        grown = replace(batch, ids=ids, labels=torch.full_like(ids, IGNORE_INDEX), documents=Documents.one_per_row(*ids.shape))
        tokens.append(int(model.language.logits(model.hidden(grown)[:, -1]).argmax()))
    return model.language.tokenizer.decode([token for token in tokens if token not in ends], skip_special_tokens=True).strip()


@torch.no_grad()
def plain_log_prob(model: VisionLanguageModel, prompt: Prompt, answer: str) -> Tensor:
    """Sum of the log-softmax at the answer's tokens, of one full forward pass."""
    batch = batch_of(model, prompt, (*prompt.messages, Message("assistant", answer)))
    scores = model.language.logits(model.hidden(batch)[0, :-1]).log_softmax(-1)
    labels = batch.labels[0, 1:]
    labelled = (labels != IGNORE_INDEX).nonzero().flatten()
    return scores[labelled, labels[labelled]].sum()


@pytest.fixture
def prompts(picture) -> list[Prompt]:
    """No picture, one, and two; of different length."""
    return [
        ask([], "Is there a red square?"),
        ask([picture(1)], "What color is the circle? What shape is in the picture?"),
        ask([picture(2), picture(3)], "Is <image> or <image> gray?"),
    ]


ANSWERS = ["blue", "A yellow rectangle.", "A yellow square", "No", "No, there is a green triangle."]


def test_greedy_answers_equal_recomputation_without_a_cache(compose, prompts, language):
    model = compose(language=language)
    for prompt in prompts:
        assert generate(model, [prompt], SHORT) == [greedy(model, prompt)]


@pytest.mark.parametrize("connector", ["linear", "pixel-shuffle-2x", "fused-mlp"])
@pytest.mark.parametrize("vision", ["tiny-clip", "tiny-fused"])
def test_greedy_answers_equal_recomputation_with_other_towers_and_connectors(compose, prompts, vision, connector):
    model = compose(vision=vision, connector=connector, language="tiny-phi")
    assert generate(model, prompts[1:2], SHORT) == [greedy(model, prompts[1])]


def test_a_batch_answers_as_each_prompt_alone(compose, prompts, language):
    model = compose(language=language)
    assert generate(model, prompts, SHORT) == [generate(model, [prompt], SHORT)[0] for prompt in prompts]


def test_the_picture_changes_an_answer(compose, picture):
    model = compose()
    question = "What color is <image>"
    torch.nn.init.normal_(model.connector.readout.weight)
    assert len({generate(model, [ask([picture(i)], question)], SHORT)[0] for i in range(5)}) > 1


def test_a_streamed_answer_is_the_whole_answer(compose, prompts, language):
    model = compose(language=language)
    for prompt in prompts:
        pieces = list(stream(model, prompt, SHORT))
        assert "".join(pieces).strip() == generate(model, [prompt], SHORT)[0]


def biased_to(model: VisionLanguageModel, tokens: list[str]) -> None:
    """Make the head say these tokens in turn, whatever it hears."""
    ids = model.language.tokenizer.convert_tokens_to_ids(tokens)
    calls = iter([*ids, *ids[-1:] * 100])

    def say(module, inputs, logits):
        out = torch.zeros_like(logits)
        out[..., next(calls)] = 1.0
        return out

    model.language.model.get_output_embeddings().register_forward_hook(say)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(compose, streamed):
    model = compose(language="tiny-phi3")  # whose stop token is not its EOS token
    assert (model.language.tokenizer.eos_token, model.template.stop) == ("<|endoftext|>", ("<|end|>",))
    biased_to(model, ["Y", "es", "<|end|>", "Y"])
    prompt = ask([], "Is there a red square?")
    answer = "".join(stream(model, prompt, SHORT)) if streamed else generate(model, [prompt], SHORT)[0]
    assert answer == "Yes"


def test_an_answer_ends_at_max_new_tokens(compose):
    model = compose()
    biased_to(model, ["a"])
    assert generate(model, [ask([], "Describe the image.")], Sampling(max_new_tokens=3)) == ["aaa"]


@pytest.mark.parametrize(
    "values",
    [{"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_sampling_outside_of_its_ranges_is_refused(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=f"^{name} is {value}; "):
        Sampling(**values)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_without_tokens_is_refused(compose, streamed):
    model, prompt = compose(language="tiny-qwen2", template="plain"), ask([], "Is there a red square?")
    with pytest.raises(DataFormatError, match=r"The prompt has no tokens: the chat template 'plain' has no place for text. Give a picture"):
        list(stream(model, prompt, SHORT)) if streamed else generate(model, [prompt], SHORT)


@pytest.mark.parametrize("template", ["plain", "caption"])
def test_a_template_without_a_place_for_the_question_is_named_once(compose, picture, template, caplog):
    _warn_without_question.cache_clear()
    model, prompt = compose(template=template), ask([picture(1)], "Is there a red square?")
    for _ in range(2):
        generate(model, [prompt], SHORT)
        list(stream(model, prompt, SHORT))
    assert caplog.text.count(f"This run's chat template '{template}' has no place for a question") == 1


def test_a_template_with_a_place_for_the_question_is_not_named(compose, prompts, caplog):
    generate(compose(), prompts, SHORT)
    assert "no place for a question" not in caplog.text


def test_sampling_draws_by_the_seed(compose, prompts):
    model = compose()
    hot = Sampling(max_new_tokens=NEW, temperature=2.0, top_p=0.95)
    torch.manual_seed(0)
    first = generate(model, prompts, hot)
    torch.manual_seed(0)
    assert generate(model, prompts, hot) == first
    assert generate(model, prompts, hot) != first


@pytest.mark.parametrize("vision", ["tiny-clip", "tiny-siglip"])
def test_log_probs_of_answers_are_those_of_plain_forward_passes(compose, prompts, language, vision):
    model = compose(vision=vision, language=language)
    expected = torch.stack([torch.stack([plain_log_prob(model, prompt, answer) for answer in ANSWERS]) for prompt in prompts])
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
    expected = torch.stack([torch.stack([plain_log_prob(model, prompt, answer) for answer in ANSWERS]) for prompt in prompts])
    without_window = answer_log_probs(compose(language="tiny-qwen2"), prompts, ANSWERS)
    seen = answer_log_probs(model, prompts, ANSWERS)
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(seen, without_window, atol=1e-2)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(compose):
    model = compose()
    with pytest.raises(DataFormatError, match=r"prompt has \d{4} tokens and the answer may have 8; the language model reads 512"):
        generate(model, [ask([], "blue " * 1000)], SHORT)


def test_a_prompt_fits_to_the_last_token(compose):
    model = compose()
    prompt = ask([], "a")
    length = len(batch_of(model, prompt, prompt.messages).ids[0])
    generate(model, [prompt], Sampling(max_new_tokens=1))
    with pytest.raises(DataFormatError, match=f"prompt has {length} tokens and the answer may have {513 - length}; the language model reads 512"):
        generate(model, [prompt], Sampling(max_new_tokens=513 - length))


def test_a_stream_refuses_before_its_first_piece(compose):
    with pytest.raises(DataFormatError, match="the language model reads 512"):
        next(stream(compose(), ask([], "blue " * 1000), SHORT))


def test_placeholders_and_pictures_of_a_question_must_agree(picture):
    with pytest.raises(DataFormatError, match="2 <image> placeholders for 1 pictures"):
        ask([picture(1)], "<image> or <image>?")


def test_pictures_without_placeholders_come_first(picture):
    assert ask([picture(1), picture(2)], "Which?").messages == (Message("user", "<image>\n<image>\nWhich?"),)


def test_earlier_placeholders_without_their_pictures_are_refused(compose, picture):
    history = (Message("user", "<image>\nWhat color?"), Message("assistant", "blue"))
    with pytest.raises(DataFormatError, match="2 <image> placeholders for 1 pictures"):
        generate(compose(), [ask([picture(1)], "And this?", history=history)], SHORT)


def test_earlier_turns_and_their_pictures_are_part_of_the_prompt(compose, picture):
    model = compose(language="tiny-qwen2")
    history = (Message("user", "<image>\nWhat color?"), Message("assistant", "blue"))
    prompt = ask([picture(2)], "And this?", history=history, earlier_images=[picture(1)])
    assert prompt.images == (picture(1), picture(2))
    assert generate(model, [prompt], SHORT) == [greedy(model, prompt)]


def test_a_failure_while_streaming_reaches_the_caller(compose, monkeypatch):
    model = compose()

    def fail(*_, **__):
        raise MemoryError("no room for the cache")

    monkeypatch.setattr(model.language, "generate", fail)
    with pytest.raises(MemoryError, match="no room for the cache"):
        list(stream(model, ask([], "Is there a red square?"), SHORT))


def test_a_stream_that_is_closed_stops_generating(compose):
    model = compose()
    biased_to(model, ["a", "Ġ", "b", "Ġ"])
    pieces = stream(model, ask([], "Describe the image."), Sampling(max_new_tokens=300))
    before, calls = threading.active_count(), []
    model.language.blocks()[0].register_forward_pre_hook(lambda *_: calls.append(1))
    next(pieces)
    pieces.close()
    assert threading.active_count() == before
    assert len(calls) < 300


def test_chat_answers_as_generate_does(compose, picture):
    model = compose(language="tiny-qwen2")
    expected = generate(model, [ask([picture(1)], "What color is the circle?")], SHORT)[0]
    assert model.chat([picture(1)], "What color is the circle?", max_new_tokens=NEW) == expected
    assert "".join(model.chat([picture(1)], "What color is the circle?", stream=True, max_new_tokens=NEW)).strip() == expected
    assert model.chat([], "Is there a red square?", max_new_tokens=NEW) == generate(model, [ask([], "Is there a red square?")], SHORT)[0]


def test_rows_are_aligned_at_their_end():
    embeds, mask = left_padded([torch.ones(1, 2, 3), torch.ones(1, 4, 3)])
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert embeds[:, :, 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]

"""Answers against plain recomputation: no cache, no padding, no batch, one token after the other."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from plain_forward import batch_of, greedy, plain_logits

from vlm.errors import ConfigError, DataFormatError
from vlm.messages import Message
from vlm.models.generate import ContextError, Prompt, Sampling, ask, embed_prompts, generate, left_padded, stream, warn_without_question
from vlm.models.vision_language import VisionLanguageModel

NEW = 8
SHORT = Sampling(max_new_tokens=NEW)


def test_greedy_answers_equal_recomputation_without_a_cache(compose, prompts, language):
    model = compose(language=language)
    for prompt in prompts:
        assert generate(model, [prompt], SHORT) == [greedy(model, prompt, count=NEW)]


@pytest.mark.parametrize("connector", ["linear", "pixel-shuffle-2x", "fused-mlp"])
@pytest.mark.parametrize("vision", ["tiny-clip", "tiny-fused"])
def test_greedy_answers_equal_recomputation_with_other_towers_and_connectors(compose, prompts, vision, connector):
    model = compose(vision=vision, connector=connector, language="tiny-phi")
    assert generate(model, prompts[1:2], SHORT) == [greedy(model, prompts[1], count=NEW)]


def test_a_batch_answers_as_each_prompt_alone(compose, prompts, family):
    model = compose(**family)
    assert generate(model, prompts, SHORT) == [generate(model, [prompt], SHORT)[0] for prompt in prompts]


def test_each_token_of_a_left_padded_batch_has_the_scores_of_a_plain_forward_pass(compose, prompts, family):
    model = compose(**family)
    embeds, mask = left_padded(embed_prompts(model, prompts, NEW))
    assert len(set(mask.sum(1).tolist())) == 3  # so there is padding
    with torch.inference_mode():
        out = model.language.model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True
        )
    for row, prompt in enumerate(prompts):
        tokens = out.sequences[row].tolist()
        ends = [place for place, token in enumerate(tokens) if token in model.language.model.generation_config.eos_token_id]
        length = min([*ends, NEW - 1]) + 1
        expected = plain_logits(model, prompt, tokens[: length - 1])
        torch.testing.assert_close(torch.stack([step[row] for step in out.logits[:length]]), expected, atol=1e-4, rtol=1e-5)
        assert tokens[:length] == expected.argmax(-1).tolist()


def test_a_batch_takes_questions_pictures_and_conversations(compose, prompts, picture):
    model = compose()
    mixed = [
        "Is there a red square?",
        ([picture(1)], "What color is the circle? What shape is in the picture?"),
        ([picture(2), picture(3)], "Is <image> or <image> gray?"),
    ]
    assert model.generate_batch(mixed, max_new_tokens=NEW) == model.generate_batch(prompts, max_new_tokens=NEW) == generate(model, prompts, SHORT)
    assert model.generate_batch([]) == []


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


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("said", "stop", "expected"),
    [
        ("yeshshs", "sh", "ye"),
        ("yeshshs", ("no", "shs"), "ye"),
        ("yeshsap", "sap", "yesh"),  # "sh" and "s" were held back as beginnings, and are part of the answer
        ("yeshshs", "shq", "yeshshs"),
    ],
)
def test_a_stop_string_may_span_tokens(compose, streamed, said, stop, expected):
    model = compose()
    biased_to(model, [*said])
    sampling, prompt = Sampling(max_new_tokens=len(said), stop=stop), ask([], "Describe the image.")
    answer = "".join(stream(model, prompt, sampling)) if streamed else generate(model, [prompt], sampling)[0]
    assert answer == expected


def test_a_stop_string_ends_generation_and_rows_that_lack_it_go_on(compose, prompts):
    model, calls = compose(), []
    biased_to(model, ["y", "e", "s", "a"])
    model.language.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    assert generate(model, prompts, Sampling(max_new_tokens=100, stop="es")) == ["y", "y", "y"]
    assert len(calls) == 3


def test_a_batch_with_stop_strings_answers_as_each_prompt_alone(compose, prompts, language):
    model = compose(language=language)
    whole = generate(model, prompts, Sampling(max_new_tokens=16))
    sampling = Sampling(max_new_tokens=16, stop=tuple(text[4:6] for text in whole if len(text) > 6))
    answers = generate(model, prompts, sampling)
    assert answers == [generate(model, [prompt], sampling)[0] for prompt in prompts]
    assert answers == ["".join(stream(model, prompt, sampling)).strip() for prompt in prompts]
    assert answers != whole


def test_an_answer_ends_at_max_new_tokens(compose):
    model = compose()
    biased_to(model, ["a"])
    assert generate(model, [ask([], "Describe the image.")], Sampling(max_new_tokens=3)) == ["aaa"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_without_tokens_is_refused(compose, streamed):
    model, prompt = compose(language="tiny-qwen2", template="plain"), ask([], "Is there a red square?")
    with pytest.raises(DataFormatError, match=r"The prompt has no tokens: the chat template 'plain' has no place for text. Give a picture"):
        list(stream(model, prompt, SHORT)) if streamed else generate(model, [prompt], SHORT)


@pytest.mark.parametrize("template", ["plain", "caption"])
def test_a_template_without_a_place_for_the_question_is_named_once(compose, picture, template, caplog):
    warn_without_question.cache_clear()
    model, prompt = compose(template=template), ask([picture(1)], "Is there a red square?")
    for _ in range(2):
        generate(model, [prompt], SHORT)
        list(stream(model, prompt, SHORT))
    assert caplog.text.count(f"This run's chat template '{template}' has no place for a question") == 1


def test_a_template_with_a_place_for_the_question_is_not_named(compose, prompts, caplog):
    generate(compose(), prompts, SHORT)
    assert "no place for a question" not in caplog.text


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(compose):
    model = compose()
    with pytest.raises(DataFormatError, match=r"prompt has \d{4} tokens and the answer may have 8; the language model reads 512"):
        generate(model, [ask([], "blue " * 1000)], SHORT)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(compose, monkeypatch):
    model = compose()
    assert model.language.longest_token == max(map(len, model.language.tokenizer.get_vocab()))
    monkeypatch.setattr(type(model.language.tokenizer), "__call__", None)  # it would take minutes and gigabytes for some 10 MB
    with pytest.raises(ContextError, match=r"has 1,000,000 characters; the language model reads 512 tokens, of at most \d+ characters each"):
        generate(model, [ask([], "a" * 1_000_000)], SHORT)


def test_a_text_of_the_longest_tokens_alone_fits(compose):
    model = compose()
    tokenizer = model.language.tokenizer
    longest = max((word for word, i in tokenizer.get_vocab().items() if i not in tokenizer.added_tokens_decoder), key=len)
    text = tokenizer.convert_tokens_to_string([longest]) * 400
    assert len(text) > 512
    generate(model, [ask([], text)], Sampling(max_new_tokens=1))


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
    assert generate(model, [prompt], SHORT) == [greedy(model, prompt, count=NEW)]


def test_a_beam_search_cannot_be_streamed(compose):
    with pytest.raises(ConfigError, match="num_beams is 2; a beam search cannot be streamed"):
        next(stream(compose(), ask([], "Describe the image."), Sampling(num_beams=2)))


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
    history = (Message("user", "<image>\nWhat color?"), Message("assistant", "blue"))
    earlier = generate(model, [ask([], "And its shape?", history=history, earlier_images=[picture(2)])], SHORT)[0]
    assert model.chat([], "And its shape?", history=history, earlier_images=[picture(2)], max_new_tokens=NEW) == earlier
    assert model.chat([], "Is there a red square?", max_new_tokens=NEW) == generate(model, [ask([], "Is there a red square?")], SHORT)[0]


def test_chat_takes_pictures_in_every_form_alone_or_in_a_list(compose, picture, tmp_path):
    model, question = compose(language="tiny-qwen2"), "What color is the circle?"
    picture(1).save(tmp_path / "a.png")
    expected = model.chat([picture(1)], question, max_new_tokens=NEW)
    for given in (picture(1), tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(picture(1))):
        assert model.chat(given, question, max_new_tokens=NEW) == model.chat([given], question, max_new_tokens=NEW) == expected
        assert "".join(model.chat(given, question, stream=True, max_new_tokens=NEW)).strip() == expected
        assert model.generate_batch([(given, question), ([given], question)], max_new_tokens=NEW) == [expected] * 2
        assert model.score((given, question), ["red"]) == model.score(([picture(1)], question), ["red"])


def test_a_photograph_in_a_prompt_is_turned(compose, picture, tmp_path):
    model, exif = compose(language="tiny-qwen2"), Image.Exif()
    exif[0x0112] = 3
    picture(1).rotate(180).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        whole = Prompt((Message("user", "<image>\nWhat color?"),), (opened,))
        expected = model.chat([picture(1)], "What color?", max_new_tokens=NEW)
        assert model.generate_batch([whole, ([opened], "What color?")], max_new_tokens=NEW) == [expected] * 2


@pytest.mark.parametrize("prompt", [None, 3, ("What?", ["a.png"]), ("a.png", "What?", "more"), ("a.png", None)])
def test_what_is_no_prompt_is_one_line(compose, prompt):
    with pytest.raises(DataFormatError, match=r"A prompt is a question, a pair \(pictures, question\), or a Prompt; got "):
        compose().generate_batch([prompt])


def test_one_text_is_not_answered_letter_by_letter(compose):
    with pytest.raises(DataFormatError, match="The prompts are one text, 'hello'; give a list of prompts"):
        compose().generate_batch("hello")


def test_rows_are_aligned_at_their_end():
    embeds, mask = left_padded([torch.ones(1, 2, 3), torch.ones(1, 4, 3)])
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert embeds[:, :, 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]

"""Labels against LLaVA's masking, restated round by round from prefixes of the text; both kinds of tokenizers (see conftest)."""

import pytest
import torch

from vlm.data.chat import check_template, encode_chat
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import ChatTemplate, Message
from vlm.types import IGNORE_INDEX

VICUNA = ChatTemplate(  # haotian-liu/LLaVA, conv_vicuna_v1: separators " " and "</s>"
    name="vicuna",
    start="<s>",
    system="{content} ",
    default_system="A chat.",
    user="USER: {content} ",
    assistant_start="ASSISTANT:",
    assistant=" {content}</s>",
)
CHATML = ChatTemplate(
    name="chatml",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant_start="<|im_start|>assistant\n",
    assistant="{content}<|im_end|>",
    between="\n",
)
PLAIN = ChatTemplate(name="plain", user="{images}", assistant_start="", assistant="{content}\n")
TEMPLATES = [VICUNA, CHATML, PLAIN]

TALK = (
    Message("user", "<image>\nwhat color is the shape?"),
    Message("assistant", "a blue circle"),
    Message("user", "and 日本語 naïve?"),
    Message("assistant", "日本語, café  \n\n indented 🙂"),
)


def encode(tokenizer, messages, template, tokens_per_image=(3,)):
    image = tokenizer.convert_tokens_to_ids("<image>")
    return encode_chat(messages, template=template, tokenizer=tokenizer, image_token_id=image, tokens_per_image=tokens_per_image)


def plain_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def llava_labels(tokenizer, text: str, image: int) -> list[int]:
    """preprocess_v1: split at "</s>", then at "ASSISTANT:"; the instruction of each round is masked, by counting the tokens of prefixes."""
    ids = plain_ids(tokenizer, text)
    labels = list(ids)
    done = ""
    for round_text in text.split("</s>")[:-1]:
        instruction, _ = round_text.split("ASSISTANT:")
        start, end = len(plain_ids(tokenizer, done)), len(plain_ids(tokenizer, done + instruction + "ASSISTANT:"))
        labels[start:end] = [IGNORE_INDEX] * (end - start)
        done += round_text + "</s>"
    return [IGNORE_INDEX if token == image else label for token, label in zip(ids, labels, strict=True)]


def test_labels_are_those_of_llava(tokenizer):
    text = (
        "<s>A chat. USER: <image>\nwhat color is the shape? ASSISTANT: a blue circle</s>"
        "USER: and 日本語 naïve? ASSISTANT: 日本語, café  \n\n indented 🙂</s>"
    )
    encoded = encode(tokenizer, TALK, VICUNA, tokens_per_image=(1,))
    assert encoded.ids.tolist() == plain_ids(tokenizer, text)
    assert encoded.labels.tolist() == llava_labels(tokenizer, text, tokenizer.convert_tokens_to_ids("<image>"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_trained_tokens_spell_the_answers_and_nothing_else(tokenizer, template: ChatTemplate):
    encoded = encode(tokenizer, TALK, template)
    spoken = tokenizer.decode(encoded.ids[encoded.labels != IGNORE_INDEX], clean_up_tokenization_spaces=False)
    answers = "".join(template.assistant.format(content=message.text) for message in TALK if message.role == "assistant")
    # Llama 2's decoder drops its dummy space behind special tokens, and cannot know where it was not a dummy
    assert spoken.replace(" ", "") == answers.replace(" ", "")
    assert torch.equal(encoded.labels[encoded.labels != IGNORE_INDEX], encoded.ids[encoded.labels != IGNORE_INDEX])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_tokens_of_a_prompt_are_a_prefix_of_the_tokens_with_the_answer(tokenizer, template: ChatTemplate):
    for turns in (1, 3):
        prompt, whole = encode(tokenizer, TALK[:turns], template), encode(tokenizer, TALK[: turns + 1], template)
        assert whole.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
        assert (whole.labels[len(prompt.ids) :] != IGNORE_INDEX).all()


def test_a_prompt_has_no_labels(tokenizer):
    assert (encode(tokenizer, TALK[:3], VICUNA).labels == IGNORE_INDEX).all()


def test_each_image_becomes_its_number_of_tokens_without_labels(tokenizer):
    messages = (Message("user", "<image><image> and"), Message("assistant", "see <image> there"))
    encoded = encode(tokenizer, messages, CHATML, tokens_per_image=(2, 5, 3))
    is_image = encoded.ids == tokenizer.convert_tokens_to_ids("<image>")
    assert int(is_image.sum()) == 10
    assert (encoded.labels[is_image] == IGNORE_INDEX).all()
    runs = "".join("x" if flag else "." for flag in is_image.tolist()).strip(".")
    assert [len(run) for run in runs.split(".") if run] == [7, 3]
    one = encode(tokenizer, messages, CHATML, tokens_per_image=(1, 1, 1))
    assert encoded.ids[~is_image].tolist() == [token for token in one.ids.tolist() if token != tokenizer.convert_tokens_to_ids("<image>")]


@pytest.mark.parametrize("counts", [(), (3, 3)])
def test_number_of_pictures_must_be_the_number_of_placeholders(tokenizer, counts: tuple[int, ...]):
    with pytest.raises(DataFormatError, match=rf"1 <image> placeholder\(s\) and {len(counts)} picture"):
        encode(tokenizer, TALK, VICUNA, counts)


def test_image_that_is_no_token_is_refused(bare_tokenizer):
    with pytest.raises(ConfigError, match=r"0 image token\(s\) of 1 '<image>'.*added token"):
        encode_chat(TALK, template=VICUNA, tokenizer=bare_tokenizer, image_token_id=7_000, tokens_per_image=(1,))


def test_slow_tokenizers_are_refused():
    with pytest.raises(ConfigError, match="not a fast tokenizer"):
        encode_chat(TALK, template=VICUNA, tokenizer=object(), image_token_id=1, tokens_per_image=(1,))


def test_token_across_the_border_of_an_answer_names_the_template(bare_tokenizer):
    glued = ChatTemplate(name="glued", user="{content}", assistant_start=" circ", assistant="le {content}")  # "circle" is one token
    with pytest.raises(ConfigError, match="'glued' does not fit the tokenizer: one token is ' circle'"):
        encode_chat(
            (Message("user", "a"), Message("assistant", "b")), template=glued, tokenizer=bare_tokenizer, image_token_id=-1, tokens_per_image=()
        )
    spaced = ChatTemplate(name="spaced", user="{content}", assistant_start=": ", assistant="{content}")  # the space melts into the answer
    with pytest.raises(ConfigError, match="'spaced' does not fit"):
        encode_chat(
            (Message("user", "a"), Message("assistant", "blue")), template=spaced, tokenizer=bare_tokenizer, image_token_id=-1, tokens_per_image=()
        )


def test_tokens_of_one_character_share_its_label(tokenizer):
    messages = (Message("user", "🙂"), Message("assistant", "🙂"))
    encoded = encode(tokenizer, messages, CHATML, ())
    trained = encoded.ids[encoded.labels != IGNORE_INDEX].tolist()
    pieces = [token for token in plain_ids(tokenizer, "🙂")][-4:]
    assert len(pieces) == 4 and trained[-5:-1] == pieces


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_templates_that_fit_pass_the_check(tokenizer, template: ChatTemplate):
    check_template(template, tokenizer)


def test_prompt_that_is_tokenized_otherwise_without_its_answer_is_refused(bare_tokenizer):
    # GPT-2's pattern leaves the last white space to the word: two line breaks are one token at the end of a text, and two before a word
    blank_line = ChatTemplate(name="blank-line", user="{content}", assistant_start="\n\n", assistant="{content}</s>")
    with pytest.raises(ConfigError, match="'blank-line' does not fit the tokenizer: a prompt ends with"):
        check_template(blank_line, bare_tokenizer)

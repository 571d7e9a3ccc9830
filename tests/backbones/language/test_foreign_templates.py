"""Templates of other trainers against their prompt builders and their tokenization, stated once more from the sources that the templates name."""

from collections.abc import Callable

import pytest

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import TEMPLATES, find_template, fit_template
from vlm.backbones.language.foreign_templates import FOREIGN
from vlm.data.chat import check_template, encode_chat
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import Message
from vlm.types import IGNORE_INDEX

LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language."
)
VICUNA_SYSTEM = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
TALK = [  # as data has it: the placeholder last, white space around
    Message("user", "What color is it?\n<image>"),
    Message("assistant", " It is red. "),
    Message("user", "Is it\nround?"),
    Message("assistant", "No"),
]
K = 5  # tokens of a picture

# Prismatic's prompt builders: what is written of the first question, of a later one, and of an answer.
Builder = tuple[Callable[[str], str], Callable[[str], str], Callable[[str], str]]
BUILDERS: dict[str, Builder] = {
    "prism-pure": (lambda m: f"In: {m}\nOut: ", lambda m: f"In: {m}\nOut: ", lambda m: f"{m}</s>"),
    "prism-vicuna": (lambda m: f"{VICUNA_SYSTEM} USER: {m} ASSISTANT: ", lambda m: f"USER: {m} ASSISTANT: ", lambda m: f"{m}</s>"),
    "prism-llama-2-chat": (
        lambda m: f"[INST] <<SYS>\n{LLAVA_SYSTEM}\n<</SYS>>\n\n{m} [/INST] ",
        lambda m: f"[INST] {m} [/INST] ",
        lambda m: f"{m}</s>",
    ),
    "prism-mistral-instruct": (lambda m: f"[INST] {m} [/INST] ", lambda m: f"[INST] {m} [/INST] ", lambda m: f"{m}</s>"),
    "prism-phi-2": (
        lambda m: f"<|endoftext|>Input: {m}\nOutput: ",
        lambda m: f"Input: {m}\nOutput: ",
        lambda m: f"{m}\n<|endoftext|>",
    ),
    "prism-lora-phi-2": (lambda m: f"In: {m}\nOut: ", lambda m: f"In: {m}\nOut: ", lambda m: f"{m}<|endoftext|>"),
    "prism-lora-phi-3": (
        lambda m: f"<s><|system|>\n{LLAVA_SYSTEM}<|end|>\n<|user|>\n{m}<|end|>\n<|Assistant|>\n",
        lambda m: f"\n<|user|>\n{m}<|end|>\n<|Assistant|>\n",
        lambda m: f"{m}<|end|>\n<|endoftext|>",
    ),
}
LLAMA = ("prism-pure", "prism-vicuna", "prism-llama-2-chat", "prism-mistral-instruct")  # whose tokenizer class makes the original strip turns
ASKED = {"prism-phi-2": "prism-phi-2-asked", "prism-lora-phi-2": "prism-lora-phi-2-asked", "prism-lora-phi-3": "prism-lora-phi-3-asked"}


def tokenizer_of(name: str):
    """One that puts BOS before a text where the original's does, with all special tokens."""
    language = "tiny-phi" if "phi-2" in name else "tiny-llama"
    made = LANGUAGE[language].tokenizer(LANGUAGE[language], None)
    if "phi-3" in name:
        made.eos_token = "<|endoftext|>"
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def fitted(name: str, tokenizer):
    return fit_template(find_template(name), tokenizer)


def encode(name: str, tokenizer, talk: list[Message]):
    image = tokenizer.convert_tokens_to_ids("<image>")
    counts = (K,) * any("<image>" in message.text for message in talk)
    return encode_chat(talk, template=fitted(name, tokenizer), tokenizer=tokenizer, image_token_id=image, tokens_per_image=counts)


def turns_of(name: str, talk: list[Message]) -> list[str]:
    first, later, answer = BUILDERS[name]
    cleaned = [message.text.replace("<image>", "").strip() for message in talk]
    return [answer(text) if i % 2 else (later if i else first)(text) for i, text in enumerate(cleaned)]


def prismatic(name: str, tokenizer, talk: list[Message]) -> tuple[list[int], list[int]]:
    """Prismatic's FinetuneDataset, and the fusion of its forward pass: patches behind the first token."""
    ids, labels = [], []
    for i, text in enumerate(turns_of(name, talk)):
        tokens = tokenizer(text.rstrip() if name in LLAMA else text, add_special_tokens=i == 0).input_ids
        ids += tokens
        labels += tokens if i % 2 else [IGNORE_INDEX] * len(tokens)
    if any("<image>" in message.text for message in talk):
        image = tokenizer.convert_tokens_to_ids("<image>")
        ids, labels = [ids[0], *[image] * K, *ids[1:]], [IGNORE_INDEX] * (K + 1) + labels[1:]
    return ids, labels


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
def test_training_sees_the_tokens_and_labels_of_prismatic(name, pictures):
    tokenizer = tokenizer_of(name)
    talk = TALK if pictures else [Message(message.role, message.text.replace("<image>", "")) for message in TALK]
    encoded = encode(name, tokenizer, talk)
    assert (encoded.ids.tolist(), encoded.labels.tolist()) == prismatic(name, tokenizer, talk)
    assert encoded.num_images == int(pictures)
    check_template(fitted(name, tokenizer), tokenizer)


@pytest.mark.parametrize("name", BUILDERS)
def test_prompts_are_written_as_the_builders_write_them(name):
    tokenizer = tokenizer_of(name)
    opening = "<s>" if tokenizer.bos_token == "<s>" else ""
    written = "".join(span.text for span in fitted(name, tokenizer).render(TALK))
    assert written == opening + "".join(turns_of(name, TALK))


@pytest.mark.parametrize("name", ASKED)
def test_the_original_asks_without_the_blank(name):
    """`get_prompt()` takes BOS off the front and white space off the end; the tokenizer puts its BOS there again."""
    tokenizer = tokenizer_of(name)
    bos = "<s>" if "phi-3" in name else ""
    prompt = "".join(turns_of(name, TALK[:1])).removeprefix(bos).rstrip()
    ids = tokenizer(prompt).input_ids
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert encode(ASKED[name], tokenizer, TALK[:1]).ids.tolist() == [ids[0], *[image] * K, *ids[1:]]
    assert encode(name, tokenizer, TALK[:1]).ids.tolist() != encode(ASKED[name], tokenizer, TALK[:1]).ids.tolist()


@pytest.mark.parametrize("name", ["prism-caption", "prism-lora-caption"])
@pytest.mark.parametrize("language", ["tiny-llama", "tiny-phi"])
def test_captions_lose_the_label_of_their_first_token(name, language):
    """Prismatic's AlignDataset."""
    tokenizer = tokenizer_of("prism-pure" if language == "tiny-llama" else "prism-phi-2")
    talk = [Message("user", "Render a clear summary.\n<image>"), Message("assistant", " a red circle ")]
    expected = tokenizer("a red circle" + tokenizer.eos_token).input_ids
    image = tokenizer.convert_tokens_to_ids("<image>")
    encoded = encode(name, tokenizer, talk)
    assert encoded.ids.tolist() == [expected[0], *[image] * K, *expected[1:]]
    assert encoded.labels.tolist() == [IGNORE_INDEX] * (K + 1) + expected[1:]


def test_hidden_tokens_are_the_end_tokens_of_training_alone():
    tokenizer = tokenizer_of("prism-lora-phi-2")
    encoded = encode("prism-lora-phi-2", tokenizer, TALK)
    ends = (encoded.ids == tokenizer.eos_token_id).nonzero().flatten().tolist()
    assert encoded.hidden == tuple(ends) and len(ends) == 2
    assert encode("prism-lora-phi-2", tokenizer, TALK[:3]).hidden == ()
    assert encode("prism-phi-2", tokenizer, TALK).hidden == ()


def test_what_is_too_long_loses_exchanges_and_keeps_the_picture():
    tokenizer = tokenizer_of("prism-vicuna")
    whole, first = encode("prism-vicuna", tokenizer, TALK), encode("prism-vicuna", tokenizer, TALK[:2])
    image = tokenizer.convert_tokens_to_ids("<image>")
    template = fitted("prism-vicuna", tokenizer)
    short = encode_chat(TALK, template=template, tokenizer=tokenizer, image_token_id=image, tokens_per_image=(K,), max_length=len(whole.ids) - 1)
    assert (short.ids.tolist(), short.dropped_turns, short.num_images) == (first.ids.tolist(), 2, 1)


def test_two_pictures_are_refused():
    with pytest.raises(DataFormatError, match="one at most; this one has 2"):
        encode("prism-pure", tokenizer_of("prism-pure"), [Message("user", "<image><image>Which?")])


def test_phi_3_of_xtuner_is_tokenized_turn_by_turn_behind_bos():
    """xtuner's encode_fn: BOS, then the instruction and the answer each by itself, then the separator."""
    tokenizer = tokenizer_of("prism-pure")
    talk = [Message("user", "<image>\nQ1"), Message("assistant", "A1"), Message("user", "Q2"), Message("assistant", "A2")]
    written = ["<|user|>\n<image>\nQ1<|end|>\n<|assistant|>\n", "A1<|end|>", "\n", "<|user|>\nQ2<|end|>\n<|assistant|>\n", "A2<|end|>"]
    ids = [tokenizer.bos_token_id]
    for text in written:
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            ids += [token] * (K if token == tokenizer.convert_tokens_to_ids("<image>") else 1)
    assert encode("xtuner-phi-3", tokenizer, talk).ids.tolist() == ids


@pytest.mark.parametrize("template", FOREIGN, ids=lambda template: template.name)
def test_names_are_registered_and_foreign_tokenizers_refused(template):
    assert TEMPLATES[template.name] is template
    if "mpt" in template.name or not template.stop:
        return
    import transformers
    from tokenizers import Tokenizer, models

    words = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "x": 1}, [])), eos_token="x")
    with pytest.raises(ConfigError, match=f"'{template.name}' ends answers with"):
        fit_template(template, words)

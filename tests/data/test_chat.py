"""Labels against LLaVA's masking, restated round by round from prefixes of the text, truncation against shorter conversations; two kinds of
tokenizers (see conftest), and for what all templates promise also those of the families.
"""

import copy
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
import transformers

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import TEMPLATES as ALL_TEMPLATES
from vlm.backbones.language.chat_templates import fit_template
from vlm.backbones.language.tiny import SPECIAL_TOKENS
from vlm.data.chat import Encoded, check_template, encode_chat
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message, count_placeholders
from vlm.types import IGNORE_INDEX

VICUNA_FOLDER = Path(__file__).parent / "prismatic_golden" / "vicuna" / "tokenizer"
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


def encode(tokenizer, messages, template, tokens_per_image=(3,), max_length=None):
    image = tokenizer.convert_tokens_to_ids("<image>")
    return encode_chat(
        messages, template=template, tokenizer=tokenizer, image_token_id=image, tokens_per_image=tokens_per_image, max_length=max_length
    )


def test_text_behind_bos_begins_as_the_tokenizer_begins_it():
    """Llama 2's tokenizer puts a space before its text, behind the BOS that it adds; a template that writes BOS itself has the same ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(VICUNA_FOLDER, legacy=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    text = "A chat. USER: <image>\nwhat é? ASSISTANT: green</s>USER: two ASSISTANT: blue</s>"
    talk = [Message("user", "<image>\nwhat é?"), Message("assistant", "green"), Message("user", "two"), Message("assistant", "blue")]
    encoded = encode(tokenizer, talk, VICUNA, tokens_per_image=(1,))
    assert encoded.ids.tolist() == tokenizer(text).input_ids
    assert tokenizer.decode(encoded.ids[encoded.labels != IGNORE_INDEX]) == "green</s> blue</s>"


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


ODD_TALK = (  # white space, pictures and characters of several tokens wherever they could melt into a template
    Message("user", "<image>\nwhat color is the shape?\n\n"),
    Message("assistant", " a blue circle\n"),
    Message("user", "\n and 日本語 naïve? "),
    Message("assistant", "日本語, café  \n\n indented 🙂\n\n"),
    Message("user", "12 <image>"),
    Message("assistant", "\n\n{yes}: 'tis 12 "),
)
TOOL_TALK = (*ODD_TALK[:2], Message("tool", " 12\n"), Message("tool", '"a" '), *ODD_TALK[3:])


def check_prompts_are_prefixes(tokenizer, template: ChatTemplate, talk: tuple[Message, ...]):
    """Whatever is said later, the tokens of a prompt and of finished turns stay; labels are the answers and nothing else."""
    ends = range(1, len(talk) + 1)
    encoded = {end: encode(tokenizer, talk[:end], template, (2,) * count_placeholders(talk[:end])) for end in ends if talk[end - 1].role != "system"}
    for end, shorter in encoded.items():
        if end < len(talk) and talk[end].role == "tool":
            continue  # not a prompt: the next result belongs into the same turn
        for longer in (encoded[other] for other in ends if other > end):
            assert longer.ids[: len(shorter.ids)].tolist() == shorter.ids.tolist()
    for end in (end for end in ends if talk[end - 1].role == "assistant"):
        answer = encoded[end].labels[len(encoded[end - 1].ids) :]
        assert (answer != IGNORE_INDEX).all() and len(answer) > 1


# Llama 3's tokenizer, and Qwen's with single digits: a word takes no line break before it, so "\n\n" stays one token whatever follows.
LLAMA_3_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def in_its_newer_form(tokenizer) -> None:
    """GPT-2's kind becomes Llama 3's; Llama 2's gets its dummy space at the very start alone, as transformers 5 loads it."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        words = pre_tokenizers.Split(Regex(LLAMA_3_PATTERN), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.fixture(scope="module", params=["older", "newer"])
def equipped(request, tokenizer):
    """The same tokenizer, or a newer form of it, with every special token of every family."""
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER, *SPECIAL_TOKENS]})
    if request.param == "newer":
        in_its_newer_form(made)
    return made


@pytest.mark.parametrize("name", [name for name, template in ALL_TEMPLATES.items() if template.image_place == "text"])
def test_prompts_of_every_template_are_prefixes_of_the_conversation(equipped, name):
    template = ALL_TEMPLATES[name].with_tokens(bos="<s>", eos="</s>")
    if name in ("llama-3", "llama-3.1", "qwen3") and equipped.tokenize("\n\na") == ["Ċ", "Ċ", "a"]:
        with pytest.raises(ConfigError, match=f"'{name}' does not fit the tokenizer: a prompt ends with .*'ĊĊ'"):
            check_template(template, equipped)  # made for Llama 3's pattern, not for GPT-2's
        return
    check_template(template, equipped)
    check_prompts_are_prefixes(equipped, template, ODD_TALK)
    if template.tool:
        check_prompts_are_prefixes(equipped, template, TOOL_TALK)


@pytest.mark.parametrize("name", [name for name in LANGUAGE if name.startswith("tiny-")])
def test_prompts_of_every_family_are_prefixes_of_the_conversation(name):
    spec = LANGUAGE[name]
    own = spec.tokenizer(spec, None)
    own.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    template = fit_template(spec.template, own)
    check_template(template, own)
    check_prompts_are_prefixes(own, template, ODD_TALK)


@pytest.mark.parametrize("newer", [False, True], ids=["older", "newer"])
def test_special_tokens_that_swallow_line_breaks_keep_their_labels(tokenizer, newer):
    """Phi-3's published tokenizer marks `<|user|>`, `<|assistant|>` and `<|end|>` with `rstrip`: the line break behind them is part of the token."""
    from transformers import AddedToken

    phi_3, template = copy.deepcopy(tokenizer), ALL_TEMPLATES["phi-3"]
    swallowing = [AddedToken(token, rstrip=True, normalized=False, special=True) for token in ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")]
    phi_3.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER, *swallowing]})
    if newer:
        in_its_newer_form(phi_3)
    if "Ġ" in "".join(phi_3.tokenize("a b")):  # Phi-3's is of Llama 2's kind; byte-level ones leave the line break out of the offsets
        with pytest.raises(ConfigError, match="'phi-3' does not fit"):
            check_template(template, phi_3)
        return
    check_template(template, phi_3)
    check_prompts_are_prefixes(phi_3, template, ODD_TALK)
    encoded = encode(phi_3, ODD_TALK, template, (1, 1))
    ends = encoded.ids == phi_3.convert_tokens_to_ids("<|end|>")
    assert (encoded.labels[ends] != IGNORE_INDEX).tolist() == [False, True] * 3


def test_special_tokens_that_a_user_types_become_special_tokens(tokenizer):
    encoded = encode(tokenizer, (Message("user", "is </s> a word?"), Message("assistant", "no")), VICUNA, ())
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert encoded.ids.tolist().count(end) == 2
    assert encoded.labels.tolist().count(end) == 1


def test_nothing_of_a_tools_result_is_trained(tokenizer):
    template = replace(CHATML, tool="<|im_start|>tool\n{content}<|im_end|>\n")
    talk = (*TALK[:2], Message("tool", "circle circle"), Message("assistant", "circle"))
    encoded = encode(tokenizer, talk, template)
    spoken = tokenizer.decode(encoded.ids[encoded.labels != IGNORE_INDEX], clean_up_tokenization_spaces=False)
    assert spoken.replace(" ", "") == "abluecircle<|im_end|>circle<|im_end|>"
    assert (encode(tokenizer, talk[:3], template).labels == IGNORE_INDEX).all()


DOCUMENT = (Message("document", "a red <image><image> triangle\n\n <image>日本語"),)


def test_a_document_is_trained_but_for_its_first_token_and_images(tokenizer):
    encoded = encode(tokenizer, DOCUMENT, VICUNA.with_tokens(bos="<s>", eos="</s>"), (2, 3, 1))
    image = tokenizer.convert_tokens_to_ids("<image>")
    untrained = encoded.ids[encoded.labels == IGNORE_INDEX].tolist()
    assert untrained == [tokenizer.convert_tokens_to_ids("<s>"), *[image] * 6]
    assert encoded.ids[-1] == encoded.labels[-1] == tokenizer.convert_tokens_to_ids("</s>")


def test_a_document_needs_the_tokenizers_end_token(tokenizer):
    with pytest.raises(DataFormatError, match=r"'vicuna' ends answers with the tokenizer's EOS token; give it one with `with_tokens`"):
        encode(tokenizer, DOCUMENT, VICUNA, (2, 3, 1))


def same(one: Encoded, other: Encoded) -> bool:
    return torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels) and one.num_images == other.num_images


PICTURES_TALK = (
    Message("user", "<image>\nwhat color is the shape?"),
    Message("assistant", "a blue circle"),
    Message("user", "and this <image>?"),
    Message("assistant", "a red triangle\n"),
    Message("user", "describe both"),
    Message("assistant", "indented"),
)
SYSTEM_TALK = (Message("system", "A chat."), *PICTURES_TALK)
LONG_TOOL_TALK = (*PICTURES_TALK[:4], Message("tool", "<image>"), Message("tool", "12"), Message("assistant", "12"), *PICTURES_TALK[4:])
CHATML_TOOLS = replace(CHATML, system="<|im_start|>system\n{content}<|im_end|>\n", tool="<|im_start|>tool\n{content}<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "talk", "cuts"),
    [
        (VICUNA, PICTURES_TALK, (2, 4)),
        (VICUNA, SYSTEM_TALK, (3, 5)),
        (PLAIN, PICTURES_TALK, (2, 4)),
        (CHATML_TOOLS, SYSTEM_TALK, (3, 5)),
        (CHATML_TOOLS, LONG_TOOL_TALK, (2, 7)),
    ],
    ids=["vicuna", "system", "plain", "chatml", "tools"],
)
def test_a_long_conversation_equals_the_longest_one_of_whole_exchanges_that_fits(tokenizer, template, talk, cuts):
    def alone(turns: int) -> Encoded:
        return encode(tokenizer, talk[:turns], template, (7,) * count_placeholders(talk[:turns]))

    whole, candidates = alone(len(talk)), [alone(turns) for turns in (*cuts, len(talk))]
    assert len({len(candidate.ids) for candidate in candidates}) == 3
    for max_length in range(len(candidates[0].ids), len(whole.ids) + 2):
        seen = encode(tokenizer, talk, template, (7,) * count_placeholders(talk), max_length)
        turns, wanted = [pair for pair in zip((*cuts, len(talk)), candidates, strict=True) if len(pair[1].ids) <= max_length][-1]
        assert same(seen, wanted)
        assert (seen.dropped_turns, seen.cut_tokens, seen.num_images) == (len(talk) - turns, 0, count_placeholders(talk[:turns]))


class Counting:
    """A tokenizer that counts how often it is asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


def test_a_conversation_is_tokenized_once_and_once_more_without_its_dropped_turns(tokenizer):
    first = encode(tokenizer, PICTURES_TALK[:2], VICUNA)
    for max_length, calls in ((1000, 1), (len(first.ids), 2), (len(first.ids) - 1, 2)):
        counting = Counting(tokenizer)
        encode(counting, PICTURES_TALK, VICUNA, (3, 3), max_length)
        assert counting.calls == calls


def test_of_an_exchange_that_is_too_long_alone_the_end_of_the_answer_is_cut(tokenizer):
    whole = encode(tokenizer, TALK[:2], VICUNA)
    least = int((whole.labels == IGNORE_INDEX).sum()) + 1
    for talk in (TALK[:2], TALK):
        for max_length in range(least, len(whole.ids)):
            cut = encode(tokenizer, talk, VICUNA, max_length=max_length)
            assert cut.ids.tolist() == whole.ids[:max_length].tolist()
            assert cut.labels.tolist() == whole.labels[:max_length].tolist()
            assert (cut.cut_tokens, cut.dropped_turns, cut.num_images) == (len(whole.ids) - max_length, len(talk) - 2, 1)
            assert cut.num_labels == max_length - least + 1
        with pytest.raises(DataFormatError, match=rf"first exchange.* has {least} tokens, and {least - 1} are allowed.*--stage\.max-length"):
            encode(tokenizer, talk, VICUNA, max_length=least - 1)


def test_an_answer_without_a_prompt_may_be_cut_to_one_token(tokenizer):
    whole = encode(tokenizer, TALK[2:], PLAIN, ())
    cut = encode(tokenizer, TALK[2:], PLAIN, (), 1)
    assert cut.ids.tolist() == cut.labels.tolist() == whole.ids[:1].tolist()
    assert cut.cut_tokens == len(whole.ids) - 1


def test_an_answer_is_not_cut_before_its_image(tokenizer):
    talk = (Message("user", "a shape?"), Message("assistant", "a blue circle <image> and a red triangle"))
    whole = encode(tokenizer, talk, CHATML, (5,))
    behind = int((whole.ids == tokenizer.convert_tokens_to_ids("<image>")).nonzero()[-1]) + 1
    assert encode(tokenizer, talk, CHATML, (5,), behind + 1).ids.tolist() == whole.ids[: behind + 1].tolist()
    with pytest.raises(DataFormatError, match=rf"has {behind + 1} tokens, and {behind} are allowed"):
        encode(tokenizer, talk, CHATML, (5,), behind)


def test_the_last_answer_of_an_exchange_with_tools_is_cut_and_no_other(tokenizer):
    talk = (*TALK[:2], Message("tool", "circle"), Message("assistant", "a blue triangle"))
    whole = encode(tokenizer, talk, CHATML_TOOLS)
    prompt = encode(tokenizer, talk[:3], CHATML_TOOLS)
    cut = encode(tokenizer, talk, CHATML_TOOLS, max_length=len(prompt.ids) + 1)
    assert cut.ids.tolist() == whole.ids[: len(prompt.ids) + 1].tolist()
    with pytest.raises(DataFormatError, match=rf"{len(prompt.ids)} are allowed"):
        encode(tokenizer, talk, CHATML_TOOLS, max_length=len(prompt.ids))


def test_a_document_is_cut_anywhere_but_inside_an_image(tokenizer):
    template, counts = VICUNA.with_tokens(bos="<s>", eos="</s>"), (2, 3, 4)
    image = tokenizer.convert_tokens_to_ids("<image>")
    whole = encode(tokenizer, DOCUMENT, template, counts)
    runs = [(token == image, len(list(group))) for token, group in groupby(whole.ids.tolist(), key=lambda token: token if token == image else -1)]
    assert [length for is_image, length in runs if is_image] == [5, 4]
    allowed, place, left = {0: 0}, 0, list(counts)  # length of a cut document -> images in it
    for is_image, length in runs:
        steps = ([left.pop(0), left.pop(0)] if length == 5 else [left.pop(0)]) if is_image else [1] * length
        for step in steps:
            allowed[place + step] = allowed[place] + is_image
            place += step
    for max_length in range(2, len(whole.ids)):
        cut = encode(tokenizer, DOCUMENT, template, counts, max_length)
        length = max(end for end in allowed if end <= max_length)
        assert cut.ids.tolist() == whole.ids[:length].tolist()
        assert cut.labels.tolist() == whole.labels[:length].tolist()
        assert (cut.num_images, cut.cut_tokens, cut.dropped_turns) == (allowed[length], len(whole.ids) - length, 0)


def test_a_document_of_which_nothing_trained_fits_is_refused(tokenizer):
    document = (Message("document", "<image> a"),)
    with pytest.raises(DataFormatError, match=r"document up to its first trained token.* has 8 tokens, and 7 are allowed"):
        encode(tokenizer, document, VICUNA.with_tokens(bos="<s>", eos="</s>"), (6,), max_length=7)


def test_a_prompt_is_never_shortened(tokenizer):
    length = len(encode(tokenizer, TALK[:3], VICUNA).ids)
    assert len(encode(tokenizer, TALK[:3], VICUNA, max_length=length).ids) == length
    with pytest.raises(DataFormatError, match=rf"The prompt has {length} tokens, and {length - 1} are allowed"):
        encode(tokenizer, TALK[:3], VICUNA, max_length=length - 1)


def test_shared_tokens_end_behind_the_last_image_if_none_of_them_is_trained(tokenizer):
    image = tokenizer.convert_tokens_to_ids("<image>")
    first = encode(tokenizer, TALK, VICUNA, (4,))
    assert first.shared_length(image) == first.ids.tolist().index(image) + 4
    assert encode(tokenizer, TALK[2:], VICUNA, ()).shared_length(image) == 0
    assert encode(tokenizer, PICTURES_TALK, VICUNA, (2, 2)).shared_length(image) == 0
    assert encode(tokenizer, PICTURES_TALK[:2], PLAIN, (2,)).shared_length(image) == 2


def test_labels_are_counted(tokenizer):
    assert encode(tokenizer, TALK[:2], VICUNA).num_labels == len(plain_ids(tokenizer, "x a blue circle</s>")) - len(plain_ids(tokenizer, "x"))
    assert encode(tokenizer, TALK[:1], VICUNA).num_labels == 0


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_templates_that_fit_pass_the_check(tokenizer, template: ChatTemplate):
    check_template(template, tokenizer)


def test_prompt_that_is_tokenized_otherwise_without_its_answer_is_refused(bare_tokenizer):
    # GPT-2's pattern leaves the last white space to the word: two line breaks are one token at the end of a text, and two before a word
    blank_line = ChatTemplate(name="blank-line", user="{content}", assistant_start="\n\n", assistant="{content}</s>")
    with pytest.raises(ConfigError, match="'blank-line' does not fit the tokenizer: a prompt ends with"):
        check_template(blank_line, bare_tokenizer)

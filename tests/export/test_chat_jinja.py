"""Chat templates as Jinja: what transformers renders is what ChatTemplate.render writes, for every template and kind of conversation."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vlm.backbones.language.chat_templates import TEMPLATES
from vlm.errors import DataFormatError
from vlm.export.chat_jinja import SEPARATOR, as_jinja, jinja_losses, written
from vlm.messages import Message

TALKS = {
    "one turn": [("user", "<image>\nWhat is it?")],
    "answered": [("user", "What is <image>?"), ("assistant", "  A dog \n")],
    "several turns": [
        ("user", '<image>\n<image>\nWhat\'s "this" and {that}?\n'),
        ("assistant", "A cat's tail."),
        ("user", "Größe \\n <image>?"),
        ("assistant", "12 cm"),
        ("user", "Sure?"),
    ],
    "system": [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi"), ("user", "<image> Why?")],
    "tool": [("user", "Weather?"), ("assistant", "call()"), ("tool", 'sunny "21"'), ("tool", "dry"), ("assistant", "Sunny."), ("user", "Ok")],
}


def rendered(template, messages, *, separator: str = "") -> str:
    talk = [{"role": role, "content": text} for role, text in messages]
    asks = talk[-1]["role"] != "assistant"
    (text,), _ = render_jinja_template(conversations=[talk], chat_template=as_jinja(template, separator=separator), add_generation_prompt=asks)
    return text


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_renders_our_string(name, talk):
    template = TEMPLATES[name].with_tokens(bos="<b>", eos="</b>")
    messages = [Message(*turn) for turn in TALKS[talk]]
    if template.image_place == "first-token" and talk == "several turns":
        with pytest.raises(Exception, match="a place for one picture"):
            rendered(template, TALKS[talk])
        return
    try:
        ours = "".join(span.text for span in template.render(messages))
    except DataFormatError:  # this family has no place for a system text or a tool
        with pytest.raises(Exception, match="has no place"):
            rendered(template, TALKS[talk])
        return
    assert rendered(template, TALKS[talk]) == written(template, messages)
    if (template.image_place, template.tokenized) == ("text", "whole"):
        assert written(template, messages) == ours
    assert rendered(template, TALKS[talk], separator=SEPARATOR).removesuffix(SEPARATOR) == written(template, messages, separator=SEPARATOR)


def test_pieces_that_are_tokenized_by_themselves_are_told_apart():
    template = TEMPLATES["prism-pure"]
    talk = [("user", "<image>\nWhat is it?"), ("assistant", "A dog."), ("user", "Sure?")]
    assert rendered(template, talk, separator="|") == "<s><image>|In: What is it?\nOut:|A dog.</s>|In: Sure?\nOut:"
    assert "turns one by one" in jinja_losses(template)[0]


def test_picture_behind_the_first_token_needs_a_bos_token():
    assert not jinja_losses(TEMPLATES["prism-phi-2-asked"])
    assert "behind the first token of the text" in jinja_losses(TEMPLATES["prism-lora-phi-2-asked"])[0]
    assert jinja_losses(TEMPLATES["prism-caption"].with_tokens(bos="", eos="</s>")) != jinja_losses(
        TEMPLATES["prism-caption"].with_tokens(bos="<s>", eos="</s>")
    )


def test_parts_are_joined_as_our_questions_are():
    parts = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "Which?"}]
    assert rendered(TEMPLATES["vicuna-v1"], [("user", parts)]) == rendered(TEMPLATES["vicuna-v1"], [("user", "<image>\n<image>\nWhich?")])


def test_prompt_that_is_not_asked_for_has_no_start_of_an_answer():
    (text,), _ = render_jinja_template(conversations=[[{"role": "user", "content": "Hi"}]], chat_template=as_jinja(TEMPLATES["chatml"]))
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_roles_that_do_not_alternate_are_refused():
    with pytest.raises(Exception, match="alternate"):
        rendered(TEMPLATES["chatml"], [("user", "a"), ("user", "b")])

"""Chat templates as Jinja: what transformers renders is what ChatTemplate.render writes, for every template and kind of conversation."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vlm.backbones.language.chat_templates import TEMPLATES
from vlm.errors import DataFormatError
from vlm.export.chat_jinja import as_jinja
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


def rendered(template, messages) -> str:
    talk = [{"role": role, "content": text} for role, text in messages]
    (text,), _ = render_jinja_template(conversations=[talk], chat_template=as_jinja(template), add_generation_prompt=talk[-1]["role"] != "assistant")
    return text


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_renders_our_string(name, talk):
    template = TEMPLATES[name].with_tokens(bos="<b>", eos="</b>")
    try:
        ours = "".join(span.text for span in template.render([Message(*turn) for turn in TALKS[talk]]))
    except DataFormatError:  # this family has no place for a system text or a tool
        with pytest.raises(Exception, match="has no place"):
            rendered(template, TALKS[talk])
        return
    assert rendered(template, TALKS[talk]) == ours


def test_parts_are_joined_as_our_questions_are():
    parts = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "Which?"}]
    assert rendered(TEMPLATES["vicuna-v1"], [("user", parts)]) == rendered(TEMPLATES["vicuna-v1"], [("user", "<image>\n<image>\nWhich?")])


def test_prompt_that_is_not_asked_for_has_no_start_of_an_answer():
    (text,), _ = render_jinja_template(conversations=[[{"role": "user", "content": "Hi"}]], chat_template=as_jinja(TEMPLATES["chatml"]))
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_roles_that_do_not_alternate_are_refused():
    with pytest.raises(Exception, match="alternate"):
        rendered(TEMPLATES["chatml"], [("user", "a"), ("user", "b")])

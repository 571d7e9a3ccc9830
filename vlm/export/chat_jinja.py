"""A chat template as Jinja, for the `chat_template` of other libraries: the same string as `ChatTemplate.render`, character for character.

A content is a text, or a list of parts; parts are joined by line breaks and a picture is written `<image>`, as `vlm.data.formats.openai` and
`vlm.models.generate.ask` do. A part `media_marker` is of llama.cpp's server: a text that stands for a picture. Knows no tokenizer: the tokens in
the template must be filled in (`fit_template`).

Templates that tokenize turn by turn write a separator between what is tokenized at once, for readers that know it.
"""

from collections.abc import Sequence
from dataclasses import replace
from string import Formatter

from vlm.messages import IMAGE_PLACEHOLDER, NEXT_ROLES, ChatTemplate, Message, count_placeholders

EMPTY = "''"
SEPARATOR = "\u241e"  # the symbol for a record separator

# Everything is trimmed ({%- -%}), so what is written is the values alone, whatever trim_blocks and lstrip_blocks are.
WORDS = """\
{%- macro words(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- set joined = namespace(text='') -%}
{%- for part in content -%}
{%- set piece = part['text'] if part['type'] in ('text', 'media_marker') else '<image>' -%}
{%- set joined.text = joined.text ~ ('' if loop.first else '\\n') ~ piece -%}
{%- endfor -%}
{{- joined.text | trim -}}
{%- endif -%}
{%- endmacro -%}
"""


def as_jinja(template: ChatTemplate, *, separator: str = "") -> str:
    """The Jinja text of a template; its variables are those of transformers: `messages`, `add_generation_prompt`, `raise_exception`.

    Args:
        template: The template.
        separator: What stands between pieces that are tokenized by themselves; empty for readers that tokenize the whole.
    """
    template, separator = _stripped(template), separator if template.tokenized != "whole" else ""
    start = _value(template, template.start)
    border = _border(separator) if start != EMPTY and (template.user or template.system) else ""  # otherwise the answer's own follows at once
    opening = f"{_pictures(template)}{{{{- {start} -}}}}{_first_picture(template)}{border}\n"
    return f"{WORDS}{_system(template)}{opening}{_system_turn(template)}{_turns(template, separator)}"


def written(template: ChatTemplate, messages: Sequence[Message], *, separator: str = "") -> str:
    """The string that the Jinja text renders: that of `ChatTemplate.render`, with the picture where it will be among the tokens."""
    spans = template.render(messages)
    texts = ["".join(span.text for span in chunk) for chunk in template.chunks(spans)]
    if template.tokenized == "stripped-turns":
        texts = [text.rstrip() for text in texts]
    if template.image_place == "first-token" and count_placeholders(messages):
        start = len(template.start.format(bos=template.bos, eos=template.eos))
        texts[0] = texts[0][:start] + IMAGE_PLACEHOLDER + texts[0][start:]
    return separator.join(texts)


def jinja_losses(template: ChatTemplate) -> list[str]:
    """What a reader that tokenizes the rendered string as a whole gets otherwise than in training."""
    losses = []
    if template.tokenized != "whole":
        losses.append(f"chat template {template.name!r} tokenizes turns one by one, which Jinja cannot say, so later turns have other tokens")
    if template.image_place == "first-token" and _value(template, template.start) == EMPTY:
        losses.append(f"chat template {template.name!r} puts the picture behind the first token of the text, a place that Jinja cannot find")
    return losses


def _stripped(template: ChatTemplate) -> ChatTemplate:
    """A template of turns that lose white space at their end: what ends a prompt is stripped, as all else ends in special tokens."""
    if template.tokenized != "stripped-turns":
        return template
    if template.assistant_start:
        return replace(template, assistant_start=template.assistant_start.rstrip())
    first = None if template.first_user is None else template.first_user.rstrip()
    return replace(template, user=template.user.rstrip(), first_user=first)


def _pictures(template: ChatTemplate) -> str:
    """Count the pictures, where the first one is written before the turns."""
    if template.image_place == "text":
        return ""
    count = f"words(message['content']).split({literal(IMAGE_PLACEHOLDER)}) | length"
    refuse = _refuse(f"Chat template {template.name!r} has a place for one picture.")
    return (
        "{%- set seen = namespace(pictures=0) -%}"
        f"{{%- for message in messages -%}}{{%- set seen.pictures = seen.pictures + ({count}) - 1 -%}}{{%- endfor -%}}\n"
        f"{{%- if seen.pictures > 1 -%}}{refuse}{{%- endif -%}}\n"
    )


def _first_picture(template: ChatTemplate) -> str:
    return "" if template.image_place == "text" else f"{{{{- {literal(IMAGE_PLACEHOLDER)} * seen.pictures -}}}}"


def _said(template: ChatTemplate, message: str) -> str:
    """What was said in a turn, as an expression."""
    words = f"words({message}['content'])"
    return words if template.image_place == "text" else f"({words} | replace({literal(IMAGE_PLACEHOLDER)}, '') | trim)"


def _border(separator: str) -> str:
    return f"{{{{- {literal(separator)} -}}}}" if separator else ""


def _system(template: ChatTemplate) -> str:
    """Who speaks first: `system` and `turns`."""
    default = "none" if template.default_system is None else literal(template.default_system)
    own = f"{{%- set system = {_said(template, 'messages[0]')} -%}}{{%- set turns = messages[1:] -%}}"
    if not template.system and template.first_user is None:
        own = _refuse(f"Chat template {template.name!r} has no place for a system message.")
    return (
        f"{{%- set system = {default} -%}}{{%- set turns = messages -%}}\n"
        f"{{%- if messages and messages[0]['role'] == 'system' -%}}{own}{{%- endif -%}}\n"
    )


def _system_turn(template: ChatTemplate) -> str:
    if not template.system:
        return ""
    return f"{{%- if system is not none -%}}{{{{- {_value(template, template.system, content='system')} -}}}}{{%- endif -%}}\n"


def _turns(template: ChatTemplate, separator: str) -> str:
    followers = "{" + ", ".join(f"{literal(role)}: [{', '.join(map(literal, roles))}]" for role, roles in NEXT_ROLES.items()) + "}"
    return "".join(
        [
            "{%- for turn in turns -%}\n",
            "{%- set before = '' if loop.first else turns[loop.index0 - 1]['role'] -%}\n",
            "{%- set after = '' if loop.last else turns[loop.index]['role'] -%}\n",
            f"{{%- set content = {_said(template, 'turn')} -%}}\n",
            f"{{%- if turn['role'] not in {followers}[before] -%}}{_refuse('Roles of a conversation alternate: user, assistant.')}\n",
            f"{{%- elif turn['role'] == 'assistant' -%}}{_assistant(template, separator)}\n",
            f"{{%- elif turn['role'] == 'tool' -%}}{_tool(template)}\n",
            f"{{%- else -%}}{_user(template)}\n{{%- endif -%}}\n",
            "{%- if turn['role'] != 'assistant' and after != 'tool' and (after or add_generation_prompt) -%}",
            f"{{{{- {_value(template, template.assistant_start)} -}}}}{{%- endif -%}}\n",
            "{%- endfor -%}",
        ]
    )


def _assistant(template: ChatTemplate, separator: str) -> str:
    said = f"{_border(separator)}{{{{- {_value(template, template.assistant, content='content | trim')} -}}}}"
    if not template.between and not separator:
        return said
    return f"{said}{{%- if after -%}}{_border(separator)}{{{{- {_value(template, template.between)} -}}}}{{%- endif -%}}"


def _user(template: ChatTemplate) -> str:
    images = f"({literal(IMAGE_PLACEHOLDER)} * ((content.split({literal(IMAGE_PLACEHOLDER)}) | length) - 1))"
    asked = f"{{{{- {_value(template, template.user, content='content', images=images)} -}}}}"
    if template.first_user is None:
        return asked
    first = f"{{{{- {_value(template, template.first_user, content='content', system='system', images=images)} -}}}}"
    return f"{{%- if loop.first and system is not none -%}}{first}{{%- else -%}}{asked}{{%- endif -%}}"


def _tool(template: ChatTemplate) -> str:
    if not template.tool:
        return _refuse(f"Chat template {template.name!r} has no place for what a tool answers.")
    start, end = literal(template.tool_start), literal(template.tool_end)
    result = _value(template, template.tool, content="content", json="(content | tojson)")
    return (
        f"{{{{- {start} if before != 'tool' else '' -}}}}"
        f"{{{{- {result} -}}}}"
        f"{{{{- {end} if after != 'tool' else '' -}}}}"
    )  # fmt: skip


def _refuse(why: str) -> str:
    return f"{{{{- raise_exception({literal(why)}) -}}}}"


def _value(template: ChatTemplate, text: str, **variables: str) -> str:
    """A format string as a Jinja expression; `variables` are the expressions of its fields."""
    pieces = []
    known = {"bos": literal(template.bos), "eos": literal(template.eos)} | variables
    for words, field, _, _ in Formatter().parse(text):
        pieces += [literal(words)] if words else []
        pieces += [f"({known[field]})"] if field else []
    return " ~ ".join(piece for piece in pieces if piece != f"({EMPTY})") or EMPTY


def literal(text: str) -> str:
    """A text as a Jinja string, in ASCII."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"

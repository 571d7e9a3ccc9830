"""A chat template as Jinja, for the `chat_template` of other libraries: the same string as `ChatTemplate.render`, character for character.

A content is a text, or a list of parts; parts are joined by line breaks and a picture is written `<image>`, as `vlm.data.formats.openai` and
`vlm.models.generate.ask` do. A part `media_marker` is of llama.cpp's server: a text that stands for a picture. Knows no tokenizer: the tokens in
the template must be filled in (`fit_template`).
"""

from string import Formatter

from vlm.messages import IMAGE_PLACEHOLDER, NEXT_ROLES, ChatTemplate

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


def as_jinja(template: ChatTemplate) -> str:
    """The Jinja text of a template; its variables are those of transformers: `messages`, `add_generation_prompt`, `raise_exception`."""
    return f"{WORDS}{_system(template)}{{{{- {_value(template, template.start)} -}}}}\n{_system_turn(template)}{_turns(template)}"


def _system(template: ChatTemplate) -> str:
    """Who speaks first: `system` and `turns`."""
    default = "none" if template.default_system is None else literal(template.default_system)
    own = "{%- set system = words(messages[0]['content']) -%}{%- set turns = messages[1:] -%}"
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


def _turns(template: ChatTemplate) -> str:
    followers = "{" + ", ".join(f"{literal(role)}: [{', '.join(map(literal, roles))}]" for role, roles in NEXT_ROLES.items()) + "}"
    return "".join(
        [
            "{%- for turn in turns -%}\n",
            "{%- set before = '' if loop.first else turns[loop.index0 - 1]['role'] -%}\n",
            "{%- set after = '' if loop.last else turns[loop.index]['role'] -%}\n",
            "{%- set content = words(turn['content']) -%}\n",
            f"{{%- if turn['role'] not in {followers}[before] -%}}{_refuse('Roles of a conversation alternate: user, assistant.')}\n",
            f"{{%- elif turn['role'] == 'assistant' -%}}{_assistant(template)}\n",
            f"{{%- elif turn['role'] == 'tool' -%}}{_tool(template)}\n",
            f"{{%- else -%}}{_user(template)}\n{{%- endif -%}}\n",
            "{%- if turn['role'] != 'assistant' and after != 'tool' and (after or add_generation_prompt) -%}",
            f"{{{{- {_value(template, template.assistant_start)} -}}}}{{%- endif -%}}\n",
            "{%- endfor -%}",
        ]
    )


def _assistant(template: ChatTemplate) -> str:
    said = f"{{{{- {_value(template, template.assistant, content='content | trim')} -}}}}"
    if not template.between:
        return said
    return f"{said}{{%- if after -%}}{{{{- {_value(template, template.between)} -}}}}{{%- endif -%}}"


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
    return " ~ ".join(pieces) or "''"


def literal(text: str) -> str:
    """A text as a Jinja string, in ASCII."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"

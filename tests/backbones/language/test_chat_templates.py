"""Chat templates against pinned strings and against the templates that the models publish in tokenizer_config.json."""

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import TEMPLATES as ALL
from vlm.backbones.language.chat_templates import find_template, fit_template
from vlm.backbones.language.foreign_templates import FOREIGN
from vlm.data.chat import Encoded, check_template, encode_chat
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.messages import ChatTemplate, Message, count_placeholders
from vlm.types import IGNORE_INDEX

TEMPLATES = {name: template for name, template in ALL.items() if template not in FOREIGN}  # those of others: test_foreign_templates.py

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PRISMATIC_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
L3_USER, L3_ASSISTANT = "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"
L31_HEAD = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

IM_USER, IM_ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"

# Three turns "Q1", "A1" to "Q3", "A3" as each template writes them; the loss sees what stands between ⟦ and ⟧, and nothing else.
PINNED = {
    "plain": ("<bos>⟦A1\n⟧", "⟦A2\n⟧", "⟦A3\n⟧"),
    "caption": ("<bos>⟦A1<eos>⟧", "⟦A2<eos>⟧", "⟦A3<eos>⟧"),
    "pure": ("<bos>In: Q1\nOut:⟦ A1<eos>⟧", "In: Q2\nOut:⟦ A2<eos>⟧", "In: Q3\nOut:⟦ A3<eos>⟧"),
    "vicuna-v1": (f"<s>{VICUNA_SYSTEM} USER: Q1 ASSISTANT:⟦ A1</s>⟧", "USER: Q2 ASSISTANT:⟦ A2</s>⟧", "USER: Q3 ASSISTANT:⟦ A3</s>⟧"),
    "llama-2-chat": ("<s>[INST] Q1 [/INST]⟦ A1 </s>⟧", "<s>[INST] Q2 [/INST]⟦ A2 </s>⟧", "<s>[INST] Q3 [/INST]⟦ A3 </s>⟧"),
    "prismatic-llama-2-chat": (
        f"<s>[INST] <<SYS>\n{PRISMATIC_SYSTEM}\n<</SYS>>\n\nQ1 [/INST]⟦ A1</s>⟧",
        "[INST] Q2 [/INST]⟦ A2</s>⟧",
        "[INST] Q3 [/INST]⟦ A3</s>⟧",
    ),
    "llama-3": (
        f"<|begin_of_text|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}⟦A1<|eot_id|>⟧",
        f"{L3_USER}Q2<|eot_id|>{L3_ASSISTANT}⟦A2<|eot_id|>⟧",
        f"{L3_USER}Q3<|eot_id|>{L3_ASSISTANT}⟦A3<|eot_id|>⟧",
    ),
    "llama-3.1": (
        f"{L31_HEAD}<|eot_id|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}⟦A1<|eot_id|>⟧",
        f"{L3_USER}Q2<|eot_id|>{L3_ASSISTANT}⟦A2<|eot_id|>⟧",
        f"{L3_USER}Q3<|eot_id|>{L3_ASSISTANT}⟦A3<|eot_id|>⟧",
    ),
    "mistral-instruct": ("<s> [INST] Q1 [/INST]⟦ A1</s>⟧", " [INST] Q2 [/INST]⟦ A2</s>⟧", " [INST] Q3 [/INST]⟦ A3</s>⟧"),
    "prismatic-mistral-instruct": ("<s>[INST] Q1 [/INST]⟦ A1</s>⟧", "[INST] Q2 [/INST]⟦ A2</s>⟧", "[INST] Q3 [/INST]⟦ A3</s>⟧"),
    "phi-2": (
        "Instruct: Q1\nOutput:⟦ A1<|endoftext|>⟧",
        "Instruct: Q2\nOutput:⟦ A2<|endoftext|>⟧",
        "Instruct: Q3\nOutput:⟦ A3<|endoftext|>⟧",
    ),
    "prismatic-phi-2": (
        "<|endoftext|>Input: Q1\nOutput:⟦ A1\n<|endoftext|>⟧",
        "Input: Q2\nOutput:⟦ A2\n<|endoftext|>⟧",
        "Input: Q3\nOutput:⟦ A3\n<|endoftext|>⟧",
    ),
    "phi-3": (
        "<|user|>\nQ1<|end|>\n<|assistant|>\n⟦A1<|end|>⟧",
        "\n<|user|>\nQ2<|end|>\n<|assistant|>\n⟦A2<|end|>⟧",
        "\n<|user|>\nQ3<|end|>\n<|assistant|>\n⟦A3<|end|>⟧",
    ),
    "chatml": (
        f"{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}⟦A1<|im_end|>⟧",
        f"\n{IM_USER}Q2<|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧",
        f"\n{IM_USER}Q3<|im_end|>\n{IM_ASSISTANT}⟦A3<|im_end|>⟧",
    ),
    "qwen2.5": (
        f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}⟦A1<|im_end|>⟧",
        f"\n{IM_USER}Q2<|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧",
        f"\n{IM_USER}Q3<|im_end|>\n{IM_ASSISTANT}⟦A3<|im_end|>⟧",
    ),
    "qwen3": (
        f"{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}{NO_THOUGHT}⟦A1<|im_end|>⟧",
        f"\n{IM_USER}Q2<|im_end|>\n{IM_ASSISTANT}{NO_THOUGHT}⟦A2<|im_end|>⟧",
        f"\n{IM_USER}Q3<|im_end|>\n{IM_ASSISTANT}{NO_THOUGHT}⟦A3<|im_end|>⟧",
    ),
    "smollm2": (
        f"<|im_start|>system\n{SMOLLM_SYSTEM}<|im_end|>\n{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}⟦A1<|im_end|>⟧",
        f"\n{IM_USER}Q2<|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧",
        f"\n{IM_USER}Q3<|im_end|>\n{IM_ASSISTANT}⟦A3<|im_end|>⟧",
    ),
}

WITH_SYSTEM = {
    "vicuna-v1": "<s>S USER: Q1 ASSISTANT:",
    "llama-2-chat": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST]",
    "prismatic-llama-2-chat": "<s>[INST] <<SYS>\nS\n<</SYS>>\n\nQ1 [/INST]",
    "llama-3": f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}",
    "llama-3.1": f"{L31_HEAD}S<|eot_id|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}",
    "mistral-instruct": "<s> [INST] S\n\nQ1 [/INST]",
    "phi-3": "<|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
    "qwen2.5": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "smollm2": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
}

# The same question where the template has a default system text, without it.
WITHOUT_SYSTEM = {
    "vicuna-v1": "<s>USER: Q1 ASSISTANT:",
    "prismatic-llama-2-chat": "<s>[INST] Q1 [/INST]",
    "llama-3.1": f"<|begin_of_text|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}",
    "qwen2.5": f"{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}",
    "smollm2": f"{IM_USER}Q1<|im_end|>\n{IM_ASSISTANT}",
}

# Templates that leave the question out, with a picture in the first and in the third turn.
PICTURES_ALONE = {
    "plain": ("<bos><image>⟦A1\nA2\nA3\n⟧", "<bos>⟦A1\nA2\n⟧<image>⟦A3\n⟧"),
    "caption": ("<bos><image>⟦A1<eos>A2<eos>A3<eos>⟧", "<bos>⟦A1<eos>A2<eos>⟧<image>⟦A3<eos>⟧"),
}

# "Q1", "A1", two results of tools, "A2": what is written behind "A1".
TWO_RESULTS = {
    "llama-3": (
        f'<|start_header_id|>tool<|end_header_id|>\n\né "1"<|eot_id|><|start_header_id|>tool<|end_header_id|>\n\nR2<|eot_id|>{L3_ASSISTANT}'
        "⟦A2<|eot_id|>⟧"
    ),
    "llama-3.1": (
        '<|start_header_id|>ipython<|end_header_id|>\n\n"é \\"1\\""<|eot_id|>'
        f'<|start_header_id|>ipython<|end_header_id|>\n\n"R2"<|eot_id|>{L3_ASSISTANT}⟦A2<|eot_id|>⟧'
    ),
    "chatml": f'\n<|im_start|>tool\né "1"<|im_end|>\n<|im_start|>tool\nR2<|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧',
    "qwen2.5": (
        f'\n{IM_USER}<tool_response>\né "1"\n</tool_response>\n<tool_response>\nR2\n</tool_response><|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧'
    ),
    "qwen3": (
        f'\n{IM_USER}<tool_response>\né "1"\n</tool_response>\n<tool_response>\nR2\n</tool_response><|im_end|>\n'
        f"{IM_ASSISTANT}{NO_THOUGHT}⟦A2<|im_end|>⟧"
    ),
    "smollm2": f'\n<|im_start|>tool\né "1"<|im_end|>\n<|im_start|>tool\nR2<|im_end|>\n{IM_ASSISTANT}⟦A2<|im_end|>⟧',
}

# The tokens that open a conversation, and how often they stand in one of three turns.
BOS = {
    "vicuna-v1": ("<s>", 1),
    "llama-2-chat": ("<s>", 3),
    "prismatic-llama-2-chat": ("<s>", 1),
    "llama-3": ("<|begin_of_text|>", 1),
    "llama-3.1": ("<|begin_of_text|>", 1),
    "mistral-instruct": ("<s>", 1),
    "prismatic-mistral-instruct": ("<s>", 1),
    "prismatic-phi-2": ("<|endoftext|>", 4),  # it also ends the answers
    "phi-2": ("<s>", 0),
    "phi-3": ("<s>", 0),
    "chatml": ("<s>", 0),
    "qwen2.5": ("<s>", 0),
    "qwen3": ("<s>", 0),
    "smollm2": ("<s>", 0),
}

# What the models publish, without the branches for definitions and calls of tools. The escapes are those of the Jinja source.
PUBLISHED = {
    "llama-2-chat": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        r"{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        r"{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama-3.1": r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "mistral-instruct": r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\n\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "phi-3": (
        r"{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
        r"{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        r"{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "qwen2.5": r"""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "qwen3": r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
                {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""",
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        r"{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        r"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
TOKENS = {"llama-3": ("<|begin_of_text|>", "<|eot_id|>"), "llama-3.1": ("<|begin_of_text|>", "<|eot_id|>"), "phi-3": ("<s>", "<|endoftext|>")}
AFTER_THE_END = {
    "phi-3": "\n<|endoftext|>",
    "qwen2.5": "\n",
    "qwen3": "\n",
    "smollm2": "\n",
}  # what the published templates add to the last end token

THREE = [Message(*turn) for n in "123" for turn in (("user", f"Q{n}"), ("assistant", f"A{n}"))]
ONE, TWO = THREE[:2], THREE[:4]
SYSTEM = Message("system", "S")
RESULTS = [*ONE, Message("tool", 'é "1"'), Message("tool", "R2"), Message("assistant", "A2")]


def named(name: str) -> ChatTemplate:
    return find_template(name).with_tokens(bos="<bos>", eos="<eos>")


def text(name: str, messages: list[Message]) -> str:
    return "".join(span.text for span in named(name).render(messages))


@pytest.fixture(scope="module")
def tokenizer():
    """Every special token of every family is one token of it."""
    made = LANGUAGE["tiny-llama"].tokenizer(LANGUAGE["tiny-llama"], None)
    made.add_special_tokens({"additional_special_tokens": ["<image>", "<bos>", "<eos>"]})
    return made


def encode(tokenizer, template: ChatTemplate, messages: list[Message]) -> Encoded:
    image = tokenizer.convert_tokens_to_ids("<image>")
    return encode_chat(messages, template=template, tokenizer=tokenizer, image_token_id=image, tokens_per_image=(1,) * count_placeholders(messages))


def marked(tokenizer, template: ChatTemplate, messages: list[Message]) -> str:
    """A conversation decoded from its tokens, with ⟦ and ⟧ around those that have labels."""
    encoded = encode(tokenizer, template, messages)
    has_label = encoded.labels != IGNORE_INDEX
    assert torch.equal(encoded.labels[has_label], encoded.ids[has_label])
    stretches = itertools.groupby(zip(encoded.ids.tolist(), has_label.tolist(), strict=True), key=lambda pair: pair[1])
    decoded = ((tokenizer.decode([token for token, _ in pairs]), trained) for trained, pairs in stretches)
    return "".join(f"⟦{piece}⟧" if trained else piece for piece, trained in decoded)


def joined(*stretches: str) -> str:
    return "".join(stretches).replace("⟧⟦", "")


def words(pinned: str) -> str:
    return pinned.replace("⟦", "").replace("⟧", "")


def prompt(pinned: str) -> str:
    return pinned.split("⟦")[0]


def published(name: str, messages: list[Message], *, source: str | None = None) -> str:
    """A conversation by the published template, as transformers renders it; one that does not end with an answer becomes a prompt."""

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    bos, eos = TOKENS.get(name, ("<s>", "</s>"))
    return environment.from_string(source or PUBLISHED[name]).render(
        messages=[{"role": message.role, "content": message.text} for message in messages],
        bos_token=bos,
        eos_token=eos,
        add_generation_prompt=messages[-1].role != "assistant",
        enable_thinking=False,
    )


def test_every_template_is_pinned():
    assert set(PINNED) == set(TEMPLATES) == set(BOS) | {"plain", "caption", "pure"}
    assert all(name == template.name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("name", PINNED)
def test_conversations_are_written_and_trained_as_pinned(tokenizer, name, turns):
    assert marked(tokenizer, named(name), THREE[: 2 * turns]) == joined(*PINNED[name][:turns])


@pytest.mark.parametrize("name", PINNED)
def test_a_prompt_is_the_conversation_up_to_the_answer(name):
    first, second, third = PINNED[name]
    assert text(name, THREE[:1]) == prompt(first)
    assert text(name, THREE[:3]) == words(first) + prompt(second)
    assert text(name, THREE[:5]) == words(first + second) + prompt(third)


@pytest.mark.parametrize("name", PINNED)
def test_no_prompt_ends_with_a_space(name):
    assert not text(name, ONE[:1]).endswith(" ")


@pytest.mark.parametrize("name", PINNED)
def test_an_empty_answer_trains_what_ends_it(tokenizer, name):
    assert marked(tokenizer, named(name), [ONE[0], Message("assistant", "")]) == PINNED[name][0].replace("A1", "")


@pytest.mark.parametrize("answer", ["\n\nA1", "A1\n\n", " \n A1\n "])
@pytest.mark.parametrize("name", PINNED)
def test_line_breaks_around_an_answer_are_not_written(tokenizer, name, answer):
    assert marked(tokenizer, named(name), [ONE[0], Message("assistant", answer)]) == PINNED[name][0]


@pytest.mark.parametrize("turn", [0, 2], ids=["first", "third"])
@pytest.mark.parametrize("name", PINNED)
def test_images_stand_where_the_question_has_them_and_are_not_trained(tokenizer, name, turn):
    asked = [Message("user", f"<image>\nQ{turn + 1}") if i == 2 * turn else message for i, message in enumerate(THREE)]
    wanted = PICTURES_ALONE[name][turn // 2] if name in PICTURES_ALONE else joined(*PINNED[name]).replace(f"Q{turn + 1}", f"<image>\nQ{turn + 1}")
    assert marked(tokenizer, named(name), asked) == wanted


@pytest.mark.parametrize("name", PINNED)
def test_an_image_in_an_answer_is_not_trained(tokenizer, name):
    wanted = PINNED[name][0].replace("A1", "see⟧<image>⟦ A1")
    assert marked(tokenizer, named(name), [ONE[0], Message("assistant", "see<image> A1")]) == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_text_is_written_as_pinned_or_refused(tokenizer, name):
    if name in WITH_SYSTEM:
        answer = PINNED[name][0].removeprefix(prompt(PINNED[name][0]))
        assert marked(tokenizer, named(name), [SYSTEM, *THREE]) == joined(WITH_SYSTEM[name], answer, *PINNED[name][1:])
    else:
        with pytest.raises(DataFormatError, match=f"{name}.*no place for a system message"):
            text(name, [SYSTEM, ONE[0]])


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_its_default_system_text_a_template_writes_none(tokenizer, name):
    first = PINNED[name][0]
    wanted = first.replace(prompt(first), WITHOUT_SYSTEM[name]) if name in WITHOUT_SYSTEM else first
    assert (TEMPLATES[name].default_system is not None) == (name in WITHOUT_SYSTEM)
    assert marked(tokenizer, replace(named(name), default_system=None), ONE) == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_results_of_tools_are_written_untrained_or_refused(tokenizer, name):
    if name in TWO_RESULTS:
        assert marked(tokenizer, named(name), RESULTS) == PINNED[name][0] + TWO_RESULTS[name]
        assert text(name, RESULTS[:-1]) == words(PINNED[name][0]) + prompt(TWO_RESULTS[name])
    else:
        with pytest.raises(DataFormatError, match=f"{name}.*no place for what a tool answers"):
            text(name, RESULTS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_document_is_trained_from_bos_to_eos_whatever_the_family(tokenizer, name):
    document = [Message("document", "\nOne <image> two.\n")]
    assert marked(tokenizer, named(name), document) == "<bos>⟦\nOne ⟧<image>⟦ two.\n<eos>⟧"


@pytest.mark.parametrize("name", BOS)
def test_the_opening_token_stands_as_often_as_the_family_has_it(tokenizer, name):
    token, times = BOS[name]
    ids = encode(tokenizer, named(name), THREE).ids.tolist()
    opening = tokenizer.convert_tokens_to_ids(["<s>", "<|begin_of_text|>", "<|endoftext|>", "<bos>"])
    assert ids.count(tokenizer.convert_tokens_to_ids(token)) == times
    assert (ids[0] in opening) == (times > 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_braces_and_placeholders_in_the_text_survive(name):
    said = "f{x} {content} {eos} {{}} 100%"
    written = text(name, [Message("user", said), Message("assistant", said)])
    assert written.count(said) == (1 if named(name).user == "{images}" else 2)


@pytest.mark.parametrize("name", ["plain", "caption"])
def test_the_question_is_dropped_and_its_images_are_kept(name):
    written = text(name, [Message("user", "<image>\nDescribe <image> both."), Message("assistant", "A cat.")])
    assert "<image><image>A cat." in written
    assert "Describe" not in written


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["default-system", "own-system"])
def test_prompts_and_single_turns_equal_the_published_template(name, system):
    assert text(name, [*system, ONE[0]]) == published(name, [*system, ONE[0]])
    assert text(name, [*system, *ONE]) + AFTER_THE_END.get(name, "") == published(name, [*system, *ONE])


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"qwen3"}))
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["default-system", "own-system"])
def test_several_turns_equal_the_published_template(name, system):
    assert text(name, [*system, *TWO[:3]]) == published(name, [*system, *TWO[:3]])
    assert text(name, [*system, *TWO]) + AFTER_THE_END.get(name, "") == published(name, [*system, *TWO])


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) & set(TWO_RESULTS) - {"qwen3"}))
def test_results_of_tools_equal_the_published_template(name):
    assert text(name, RESULTS[:3]) == published(name, RESULTS[:3])
    assert text(name, RESULTS[:4]) == published(name, RESULTS[:4])
    assert text(name, [*RESULTS, TWO[2]]) == published(name, [*RESULTS, TWO[2]])


def test_results_of_tools_in_qwen3_differ_from_the_published_template_by_think_blocks_alone():
    assert text("qwen3", RESULTS[:4]).replace(NO_THOUGHT, "", 1) == published("qwen3", RESULTS[:4])
    assert text("qwen3", RESULTS).replace(NO_THOUGHT, "", 1) + "\n" == published("qwen3", RESULTS)


def test_qwen3_differs_from_the_published_template_by_the_think_blocks_of_earlier_answers_alone():
    block = NO_THOUGHT
    ours, theirs = text("qwen3", TWO) + "\n", published("qwen3", TWO)
    assert ours.count(block) == 2
    assert theirs.count(block) == 1
    assert ours.replace(block, "", 1) == theirs


def test_vicuna_equals_llavas_conversation_behind_the_tokenizers_bos():
    def get_prompt(turns: list[tuple[str, str | None]]) -> str:
        """haotian-liu/LLaVA, conv_vicuna_v1: SeparatorStyle.TWO with seps " " and "</s>"."""
        written = VICUNA_SYSTEM + " "
        for i, (role, message) in enumerate(turns):
            written += f"{role}: {message}{(' ', '</s>')[i % 2]}" if message else f"{role}:"
        return written

    turns = [("USER", "Q1"), ("ASSISTANT", "A1"), ("USER", "Q2"), ("ASSISTANT", "A2")]
    assert text("vicuna-v1", TWO) == "<s>" + get_prompt(turns)
    assert text("vicuna-v1", TWO[:3]) == "<s>" + get_prompt([*turns[:3], ("ASSISTANT", None)])


def test_smollm2_equals_the_template_inside_the_packaged_model():
    spec = LANGUAGE["smollm2-135m-instruct-q4"]
    source = spec.tokenizer(spec, spec.source).chat_template
    for messages in (ONE[:1], TWO[:3], [SYSTEM, ONE[0]]):
        assert text("smollm2", messages) == published("smollm2", messages, source=source)


def test_smollm2s_own_tokenizer_begins_every_conversation_with_the_tokens_of_its_prompts():
    spec = LANGUAGE["smollm2-135m-instruct-q4"]
    own = spec.tokenizer(spec, spec.source)
    check_template(TEMPLATES["smollm2"], own)
    whole = encode(own, TEMPLATES["smollm2"], RESULTS).ids.tolist()
    for turns in (1, 4):
        start = encode(own, TEMPLATES["smollm2"], RESULTS[:turns]).ids.tolist()
        assert whole[: len(start)] == start


def test_a_space_at_the_end_of_phi_2s_prompt_is_refused():
    """The model card writes "Output:"; with a space behind it, the prompt ends with a token that training never sees there."""
    spec = LANGUAGE["tiny-phi"]
    own = spec.tokenizer(spec, None)
    check_template(TEMPLATES["phi-2"], own)
    trap = replace(TEMPLATES["phi-2"], name="trap", assistant_start="Output: ", assistant="{content}<|endoftext|>")
    with pytest.raises(ConfigError, match="'trap' does not fit the tokenizer: one token is ' t'"):
        check_template(trap, own)


def test_bos_is_what_the_tokenizer_itself_puts_before_a_text():
    llama, qwen = (LANGUAGE[name].tokenizer(LANGUAGE[name], None) for name in ("tiny-llama", "tiny-qwen2"))
    assert fit_template(TEMPLATES["caption"], llama).render(ONE)[0].text == "<s>"
    assert "".join(s.text for s in fit_template(TEMPLATES["caption"], qwen).render(ONE)) == "A1<|im_end|>"


def test_a_template_for_another_tokenizer_is_refused():
    import transformers
    from tokenizers import Tokenizer, models

    words = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "</s>": 1}, [])), eos_token="</s>")
    with pytest.raises(ConfigError, match=r"'phi-3' ends answers with '<\|end\|>'.*plain, caption, pure"):
        fit_template(TEMPLATES["phi-3"], words)


def test_a_template_without_its_end_token_is_refused_instead_of_written():
    with pytest.raises(DataFormatError, match="'pure' ends answers with the tokenizer's EOS"):
        find_template("pure").render(ONE)


def test_an_unknown_template_names_its_neighbors():
    with pytest.raises(UnknownNameError, match=r"No chat template named 'lama-3'\. Did you mean 'llama-3'"):
        find_template("lama-3")

"""Chat templates against pinned strings and against the templates that the models publish in tokenizer_config.json."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import TEMPLATES, find_template, fit_template
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.messages import ChatTemplate, Message

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

# name: (before and between the answers "A1" and "A2" of two turns "Q1", "Q2"; the answers with what is trained besides them)
TWO_TURNS = {
    "plain": (["<bos>", ""], ["A1\n", "A2\n"]),
    "caption": (["<bos>", ""], ["A1<eos>", "A2<eos>"]),
    "pure": (["<bos>In: Q1\nOut:", "In: Q2\nOut:"], [" A1<eos>", " A2<eos>"]),
    "vicuna-v1": ([f"<s>{VICUNA_SYSTEM} USER: Q1 ASSISTANT:", "USER: Q2 ASSISTANT:"], [" A1</s>", " A2</s>"]),
    "llama-2-chat": (["<s>[INST] Q1 [/INST]", "<s>[INST] Q2 [/INST]"], [" A1 </s>", " A2 </s>"]),
    "prismatic-llama-2-chat": (
        [f"<s>[INST] <<SYS>\n{PRISMATIC_SYSTEM}\n<</SYS>>\n\nQ1 [/INST]", "[INST] Q2 [/INST]"],
        [" A1</s>", " A2</s>"],
    ),
    "llama-3": (
        [f"<|begin_of_text|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}", f"{L3_USER}Q2<|eot_id|>{L3_ASSISTANT}"],
        ["A1<|eot_id|>", "A2<|eot_id|>"],
    ),
    "llama-3.1": (
        [f"{L31_HEAD}<|eot_id|>{L3_USER}Q1<|eot_id|>{L3_ASSISTANT}", f"{L3_USER}Q2<|eot_id|>{L3_ASSISTANT}"],
        ["A1<|eot_id|>", "A2<|eot_id|>"],
    ),
    "mistral-instruct": (["<s> [INST] Q1 [/INST]", " [INST] Q2 [/INST]"], [" A1</s>", " A2</s>"]),
    "prismatic-mistral-instruct": (["<s>[INST] Q1 [/INST]", "[INST] Q2 [/INST]"], [" A1</s>", " A2</s>"]),
    "phi-2": (["Instruct: Q1\nOutput:", "Instruct: Q2\nOutput:"], [" A1<|endoftext|>", " A2<|endoftext|>"]),
    "prismatic-phi-2": (
        ["<|endoftext|>Input: Q1\nOutput:", "Input: Q2\nOutput:"],
        [" A1\n<|endoftext|>", " A2\n<|endoftext|>"],
    ),
    "phi-3": (["<|user|>\nQ1<|end|>\n<|assistant|>\n", "\n<|user|>\nQ2<|end|>\n<|assistant|>\n"], ["A1<|end|>", "A2<|end|>"]),
    "chatml": (
        ["<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"],
        ["A1<|im_end|>", "A2<|im_end|>"],
    ),
    "qwen2.5": (
        [
            f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
            "\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        ],
        ["A1<|im_end|>", "A2<|im_end|>"],
    ),
    "qwen3": (
        [
            "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ],
        ["A1<|im_end|>", "A2<|im_end|>"],
    ),
    "smollm2": (
        [
            f"<|im_start|>system\n{SMOLLM_SYSTEM}<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n",
            "\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        ],
        ["A1<|im_end|>", "A2<|im_end|>"],
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

# What the models publish, without the branches for tools. The escapes are those of the Jinja source.
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
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
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

ONE = [Message("user", "Q1"), Message("assistant", "A1")]
TWO = [*ONE, Message("user", "Q2"), Message("assistant", "A2")]
SYSTEM = Message("system", "S")


def named(name: str) -> ChatTemplate:
    return find_template(name).with_tokens(bos="<bos>", eos="<eos>")


def text(name: str, messages: list[Message]) -> str:
    return "".join(span.text for span in named(name).render(messages))


def published(name: str, messages: list[Message], *, source: str | None = None) -> str:
    """A conversation by the published template, as transformers renders it; one that ends with a user turn becomes a prompt."""

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    bos, eos = TOKENS.get(name, ("<s>", "</s>"))
    return environment.from_string(source or PUBLISHED[name]).render(
        messages=[{"role": message.role, "content": message.text} for message in messages],
        bos_token=bos,
        eos_token=eos,
        add_generation_prompt=messages[-1].role == "user",
        enable_thinking=False,
    )


def test_every_template_is_pinned():
    assert set(TWO_TURNS) == set(TEMPLATES)
    assert all(name == template.name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", TWO_TURNS)
def test_two_turns_are_written_and_trained_as_pinned(name):
    untrained, trained = TWO_TURNS[name]
    seen = [("", False), *((span.text, span.trained) for span in named(name).render(TWO)), ("", False)]
    stretches = [""]
    for (piece, is_trained), (_, was_trained) in zip(seen[1:], seen, strict=False):
        if is_trained or was_trained:
            stretches.append("")
        stretches[-1] += piece
    wanted = [untrained[0], trained[0], untrained[1], trained[1]]
    assert [s for s in stretches if s] == [s for s in wanted if s]
    assert "".join(span.text for span in named(name).render(TWO) if span.trained) == "".join(trained)


@pytest.mark.parametrize("name", TWO_TURNS)
def test_a_prompt_is_the_conversation_up_to_the_answer(name):
    assert text(name, ONE[:1]) == TWO_TURNS[name][0][0]
    assert text(name, ONE) == TWO_TURNS[name][0][0] + TWO_TURNS[name][1][0]
    assert text(name, TWO).startswith(text(name, TWO[:3]))


@pytest.mark.parametrize("name", TWO_TURNS)
def test_no_prompt_ends_with_a_space(name):
    assert not text(name, ONE[:1]).endswith(" ")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_text_is_written_as_pinned_or_refused(name):
    if name in WITH_SYSTEM:
        assert text(name, [SYSTEM, ONE[0]]) == WITH_SYSTEM[name]
    else:
        with pytest.raises(DataFormatError, match=f"{name}.*no place for a system message"):
            text(name, [SYSTEM, ONE[0]])


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


@pytest.mark.parametrize("name", set(PUBLISHED) - {"qwen3"})
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["default-system", "own-system"])
def test_several_turns_equal_the_published_template(name, system):
    assert text(name, [*system, *TWO[:3]]) == published(name, [*system, *TWO[:3]])
    assert text(name, [*system, *TWO]) + AFTER_THE_END.get(name, "") == published(name, [*system, *TWO])


def test_qwen3_differs_from_the_published_template_by_the_think_blocks_of_earlier_answers_alone():
    block = "<think>\n\n</think>\n\n"
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

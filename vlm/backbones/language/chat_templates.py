"""Chat templates by name: how each family writes a conversation. Text only; tokenization is in `vlm.data.chat`.

Each follows the template in its model's `tokenizer_config.json` (or the training code that is named), with one liberty: nothing follows the end
token of the last answer, where most published templates put a line break that is never generated. Published templates differ in whose outer white
space they strip; here answers lose it and all else is kept as it is given.

Those that other trainers' checkpoints were trained with are in `vlm.backbones.language.foreign_templates`.

A family has a place for what tools answer where its published template has one. Their calls are text of the answers, as they stand in the data.
"""

from dataclasses import replace
from typing import Any

from vlm.backbones.language.foreign_templates import FOREIGN, LLAVA_SYSTEM, VICUNA_SYSTEM
from vlm.errors import ConfigError, UnknownNameError
from vlm.messages import ChatTemplate

# haotian-liu/LLaVA, conv_llava_plain and preprocess_plain: the question is dropped, the tokenizer puts its BOS token first.
PLAIN = ChatTemplate(name="plain", start="{bos}", user="{images}", assistant_start="", assistant="{content}\n")

# Prismatic's align stage (Karamcheti et al. 2024, arXiv:2402.07865): image, caption, EOS.
CAPTION = ChatTemplate(name="caption", start="{bos}", user="{images}", assistant_start="", assistant="{content}{eos}")

# Prismatic's PurePromptBuilder, for language models without instruction tuning.
PURE = ChatTemplate(name="pure", start="{bos}", user="In: {content}\n", assistant_start="Out:", assistant=" {content}{eos}")

# LLaVA 1.5's conv_vicuna_v1, Prismatic's VicunaV15ChatPromptBuilder.
VICUNA_V1 = ChatTemplate(
    name="vicuna-v1",
    start="<s>",
    system="{content} ",
    default_system=VICUNA_SYSTEM,
    user="USER: {content} ",
    assistant_start="ASSISTANT:",
    assistant=" {content}</s>",
    stop=("</s>",),
)

# meta-llama/Llama-2-7b-chat-hf; the system text stands inside the first turn, every turn opens with BOS.
LLAMA_2_CHAT = ChatTemplate(
    name="llama-2-chat",
    first_user="<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{content} [/INST]",
    user="<s>[INST] {content} [/INST]",
    assistant_start="",
    assistant=" {content} </s>",
    stop=("</s>",),
)

# Prismatic's Llama2ChatPromptBuilder: one BOS, and an opening tag that lacks its last bracket, as its checkpoints were trained.
PRISMATIC_LLAMA_2_CHAT = ChatTemplate(
    name="prismatic-llama-2-chat",
    start="<s>",
    default_system=LLAVA_SYSTEM,
    first_user="[INST] <<SYS>\n{system}\n<</SYS>>\n\n{content} [/INST]",
    user="[INST] {content} [/INST]",
    assistant_start="",
    assistant=" {content}</s>",
    stop=("</s>",),
)

# meta-llama/Meta-Llama-3-8B-Instruct.
LLAMA_3 = ChatTemplate(
    name="llama-3",
    start="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    assistant_start="<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant="{content}<|eot_id|>",
    tool="<|start_header_id|>tool<|end_header_id|>\n\n{content}<|eot_id|>",  # the published template writes any role so
    stop=("<|eot_id|>",),
)

# meta-llama/Llama-3.1-8B-Instruct and 3.2: every conversation has a system turn with two dates; "today" is the template's own default, so that
# a prompt does not change from day to day.
LLAMA_3_1 = ChatTemplate(
    name="llama-3.1",
    start="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{content}<|eot_id|>",
    default_system="",
    user=LLAMA_3.user,
    assistant_start=LLAMA_3.assistant_start,
    assistant=LLAMA_3.assistant,
    tool="<|start_header_id|>ipython<|end_header_id|>\n\n{json}<|eot_id|>",
    stop=LLAMA_3.stop,
)

# mistralai/Mistral-7B-Instruct-v0.1 and v0.2: one template for both since September 2024.
MISTRAL_INSTRUCT = ChatTemplate(
    name="mistral-instruct",
    start="<s>",
    first_user=" [INST] {system}\n\n{content} [/INST]",
    user=" [INST] {content} [/INST]",
    assistant_start="",
    assistant=" {content}</s>",
    stop=("</s>",),
)

# Prismatic's MistralInstructPromptBuilder: no space before the tag.
PRISMATIC_MISTRAL_INSTRUCT = ChatTemplate(
    name="prismatic-mistral-instruct", start="<s>", user="[INST] {content} [/INST]", assistant_start="", assistant=" {content}</s>", stop=("</s>",)
)

# The instruction format of microsoft/phi-2's model card, which defines one turn; the end token closes an answer.
PHI_2 = ChatTemplate(
    name="phi-2", user="Instruct: {content}\n", assistant_start="Output:", assistant=" {content}<|endoftext|>", stop=("<|endoftext|>",)
)

# Prismatic's PhiPromptBuilder, without the space that it left at the end of the prompt in training and stripped at inference.
PRISMATIC_PHI_2 = ChatTemplate(
    name="prismatic-phi-2",
    start="<|endoftext|>",
    user="Input: {content}\n",
    assistant_start="Output:",
    assistant=" {content}\n<|endoftext|>",
    stop=("<|endoftext|>",),
)

# microsoft/Phi-3-mini-4k-instruct; no BOS.
PHI_3 = ChatTemplate(
    name="phi-3",
    system="<|system|>\n{content}<|end|>\n",
    user="<|user|>\n{content}<|end|>\n",
    assistant_start="<|assistant|>\n",
    assistant="{content}<|end|>",
    between="\n",
    stop=("<|end|>",),
)


CHATML = ChatTemplate(
    name="chatml",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant_start="<|im_start|>assistant\n",
    assistant="{content}<|im_end|>",
    between="\n",
    tool="<|im_start|>tool\n{content}<|im_end|>\n",
    stop=("<|im_end|>",),
)

# Results of tools stand inside a user turn, one for all that follow one another.
QWEN_2_5 = replace(
    CHATML,
    name="qwen2.5",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    tool_start="<|im_start|>user",
    tool="\n<tool_response>\n{content}\n</tool_response>",
    tool_end="<|im_end|>\n",
)

# Qwen3 without thinking: its generation prompt holds an empty think block. The published template then drops that block from all answers but the
# last; here every answer keeps it, so that each is trained under exactly the prompt from which it is generated. One turn is equal to the published.
QWEN_3 = replace(QWEN_2_5, name="qwen3", default_system=None, assistant_start="<|im_start|>assistant\n<think>\n\n</think>\n\n")

SMOLLM2 = replace(CHATML, name="smollm2", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")

TEMPLATES = {
    template.name: template
    for template in (
        PLAIN,
        CAPTION,
        PURE,
        VICUNA_V1,
        LLAMA_2_CHAT,
        PRISMATIC_LLAMA_2_CHAT,
        LLAMA_3,
        LLAMA_3_1,
        MISTRAL_INSTRUCT,
        PRISMATIC_MISTRAL_INSTRUCT,
        PHI_2,
        PRISMATIC_PHI_2,
        PHI_3,
        CHATML,
        QWEN_2_5,
        QWEN_3,
        SMOLLM2,
        *FOREIGN,
    )
}


def find_template(name: str) -> ChatTemplate:
    """A template by name.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("chat template", name, TEMPLATES)
    return TEMPLATES[name]


def fit_template(template: ChatTemplate, tokenizer: Any) -> ChatTemplate:
    """The template with the tokenizer's own BOS and EOS in the places of `{bos}` and `{eos}`.

    BOS is the token that the tokenizer itself puts before a text, so nothing for tokenizers that only name one (SmolLM2, Qwen, Phi).

    Raises:
        ConfigError: If a token that ends an answer is not one token of this tokenizer, so that generation would never stop.
    """
    vocabulary = tokenizer.get_vocab()
    foreign = [token for token in template.stop if token not in vocabulary]
    if foreign:
        raise ConfigError(
            f"Chat template {template.name!r} ends answers with {foreign[0]!r}, which this language model's tokenizer does not have as one token. "
            f"Choose another with --model.template; these serve every model: {', '.join(_universal())}."
        )
    opening = tokenizer("x").input_ids[:1]
    adds_bos = tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id]
    return template.with_tokens(bos=tokenizer.bos_token if adds_bos else "", eos=tokenizer.eos_token)


def _universal() -> list[str]:
    return [name for name, template in TEMPLATES.items() if not template.stop and template not in FOREIGN]

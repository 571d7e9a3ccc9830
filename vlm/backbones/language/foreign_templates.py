"""Chat templates as other trainers wrote and tokenized them, for the models that they trained: Prismatic and its forks, LLaVA, xtuner. Text only.

Prismatic tokenizes turn by turn and puts the picture behind the first token. Its Phi models were trained on prompts that end with a blank token, and
asked without it by the original code: `prism-...` asks as was trained, `prism-...-asked` as the original asks.
"""

from dataclasses import replace

from vlm.messages import ChatTemplate

VICUNA_SYSTEM = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

# TRI-ML/prismatic-vlms: prismatic/models/backbones/llm/prompting; tokenization is in prismatic/preprocessing/datasets/datasets.py. Turns lose white
# space at their end where the tokenizer is Llama's.
PRISM_PURE = ChatTemplate(
    name="prism-pure",
    start="<s>",
    user="In: {content}\nOut: ",
    assistant_start="",
    assistant="{content}</s>",
    stop=("</s>",),
    image_place="first-token",
    tokenized="stripped-turns",
)
PRISM_VICUNA = replace(
    PRISM_PURE, name="prism-vicuna", system="{content} ", default_system=VICUNA_SYSTEM, user="USER: {content} ASSISTANT: ", first_user=None
)
PRISM_LLAMA_2_CHAT = replace(
    PRISM_PURE,
    name="prism-llama-2-chat",
    default_system=LLAVA_SYSTEM,
    first_user="[INST] <<SYS>\n{system}\n<</SYS>>\n\n{content} [/INST] ",  # the tag lacks its last bracket there too
    user="[INST] {content} [/INST] ",
)
PRISM_MISTRAL_INSTRUCT = replace(PRISM_PURE, name="prism-mistral-instruct", user="[INST] {content} [/INST] ")
PRISM_PHI_2 = ChatTemplate(
    name="prism-phi-2",
    start="<|endoftext|>",
    user="Input: {content}\nOutput: ",
    assistant_start="",
    assistant="{content}\n<|endoftext|>",
    stop=("<|endoftext|>",),
    image_place="first-token",
    tokenized="turns",
)
PRISM_PHI_2_ASKED = replace(
    PRISM_PHI_2,
    name="prism-phi-2-asked",
    user="Input: {content}\n",
    assistant_start="Output:",
    assistant=" {content}\n<|endoftext|>",
    tokenized="whole",
)
# Its align stage: the caption and the end token; without BOS, the picture stands behind the first token of the caption.
PRISM_CAPTION = ChatTemplate(
    name="prism-caption",
    start="{bos}",
    user="",
    assistant_start="",
    assistant="{content}{eos}",
    image_place="first-token",
    tokenized="turns",
)

# nms05/SigLIP_Phi2_LoRA_VLM: no BOS, and end tokens are hidden as if they were padding.
PRISM_LORA_PHI_2 = replace(
    PRISM_PHI_2, name="prism-lora-phi-2", start="", user="In: {content}\nOut: ", assistant="{content}<|endoftext|>", hides_ends=True
)
PRISM_LORA_PHI_2_ASKED = replace(
    PRISM_PHI_2_ASKED,
    name="prism-lora-phi-2-asked",
    start="",
    user="In: {content}\n",
    assistant_start="Out:",
    assistant=" {content}<|endoftext|>",
    hides_ends=True,
)
# NMS05/DinoV2-SigLIP-Phi3-LoRA-VLM: two BOS in training, one when asked; `<|Assistant|>` is not the special token.
PRISM_LORA_PHI_3 = ChatTemplate(
    name="prism-lora-phi-3",
    start="<s>",
    system="<s><|system|>\n{content}<|end|>",
    default_system=LLAVA_SYSTEM,
    user="\n<|user|>\n{content}<|end|>\n<|Assistant|>\n",
    assistant_start="",
    assistant="{content}<|end|>\n<|endoftext|>",
    stop=("<|endoftext|>", "<|end|>"),
    image_place="first-token",
    tokenized="turns",
    hides_ends=True,
)
PRISM_LORA_PHI_3_ASKED = replace(
    PRISM_LORA_PHI_3,
    name="prism-lora-phi-3-asked",
    system="<|system|>\n{content}<|end|>",
    user="\n<|user|>\n{content}<|end|>\n",
    assistant_start="<|Assistant|>",
    assistant="\n{content}<|end|>\n<|endoftext|>",
    tokenized="whole",
)
PRISM_LORA_CAPTION = replace(PRISM_CAPTION, name="prism-lora-caption", hides_ends=True)

# haotian-liu/LLaVA: llava/conversation.py; `vicuna_v1` and `plain` are `vicuna-v1` and `plain` here.
LLAVA_V1 = ChatTemplate(
    name="llava-v1",
    start="<s>",
    system="{content} ",
    default_system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    user="USER: {content} ",
    assistant_start="ASSISTANT:",
    assistant=" {content}</s>",
    stop=("</s>",),
)
LLAVA_LLAMA_2 = ChatTemplate(
    name="llava-llama-2",
    default_system=LLAVA_SYSTEM,
    first_user="<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{content} [/INST]",
    user="<s>[INST] {content} [/INST]",
    assistant_start="",
    assistant=" {content} </s>",
    stop=("</s>",),
)
LLAVA_MISTRAL_INSTRUCT = ChatTemplate(
    name="llava-mistral-instruct", start="<s>", user="[INST] {content} [/INST]", assistant_start="", assistant=" {content} </s>", stop=("</s>",)
)
LLAVA_CHATML_DIRECT = ChatTemplate(
    name="llava-chatml-direct",
    start="{bos}",
    system="<|im_start|>system\n{content}<|im_end|>",
    default_system="Answer the questions.",
    user="<|im_start|>user\n{content}<|im_end|>",
    assistant_start="<|im_start|>assistant\n",
    assistant="{content}<|im_end|>",
    stop=("<|im_end|>",),
)
LLAVA_MPT = replace(
    LLAVA_CHATML_DIRECT,
    name="llava-mpt",
    default_system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
)
# The chat template of llava-hf/llava-1.5-7b-hf and -13b-hf: no system text, though the weights were trained with one.
LLAVA_HF = replace(LLAVA_V1, name="llava-hf", system="", default_system=None)

# InternLM/xtuner, xtuner/utils/templates.py: `phi3_chat`; its `llama3_chat` is `llama-3` here. BOS comes first.
XTUNER_PHI_3 = ChatTemplate(
    name="xtuner-phi-3",
    start="<s>",
    system="<|system|>\n{content}<|end|>\n",
    user="<|user|>\n{content}<|end|>\n<|assistant|>\n",
    assistant_start="",
    assistant="{content}<|end|>",
    between="\n",
    stop=("<|end|>",),
    tokenized="turns",
)

FOREIGN = (
    PRISM_PURE,
    PRISM_VICUNA,
    PRISM_LLAMA_2_CHAT,
    PRISM_MISTRAL_INSTRUCT,
    PRISM_PHI_2,
    PRISM_PHI_2_ASKED,
    PRISM_CAPTION,
    PRISM_LORA_PHI_2,
    PRISM_LORA_PHI_2_ASKED,
    PRISM_LORA_PHI_3,
    PRISM_LORA_PHI_3_ASKED,
    PRISM_LORA_CAPTION,
    LLAVA_V1,
    LLAVA_LLAMA_2,
    LLAVA_MISTRAL_INSTRUCT,
    LLAVA_CHATML_DIRECT,
    LLAVA_MPT,
    LLAVA_HF,
    XTUNER_PHI_3,
)

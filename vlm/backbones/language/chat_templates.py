"""Chat templates by name: how each family writes a conversation. Text only; tokenization is in `vlm.data.chat`."""

from vlm.errors import UnknownNameError
from vlm.types import ChatTemplate

PLAIN = ChatTemplate(
    name="plain", user="{images}", assistant_start="", assistant="{content}\n"
)  # LLaVA's pretraining format (haotian-liu/LLaVA, conv_llava_plain)

SMOLLM2 = ChatTemplate(
    name="smollm2",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant_start="<|im_start|>assistant\n",
    assistant="{content}<|im_end|>",
    between="\n",
    stop=("<|im_end|>",),
)

TEMPLATES = {template.name: template for template in (PLAIN, SMOLLM2)}


def find_template(name: str) -> ChatTemplate:
    """A template by name.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("chat template", name, TEMPLATES)
    return TEMPLATES[name]

"""Chat templates by name: how each family writes a conversation. Text only; tokenization is in `vlm.data.chat`."""

from vlm.errors import UnknownNameError
from vlm.types import ChatTemplate

PLAIN = ChatTemplate(name="plain", user="{images}", assistant_start="", assistant="{content}\n")  # LLaVA's pretraining format (haotian-liu/LLaVA, conv_llava_plain)

TEMPLATES = {template.name: template for template in (PLAIN,)}


def find_template(name: str) -> ChatTemplate:
    """A template by name.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in TEMPLATES:
        raise UnknownNameError("chat template", name, TEMPLATES)
    return TEMPLATES[name]

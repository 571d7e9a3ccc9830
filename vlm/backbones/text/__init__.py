"""The text encoders by name."""

from vlm.backbones.text.base import TextSpec
from vlm.registry import Registry

TEXT: Registry[TextSpec] = Registry(__name__, kind="text encoder")

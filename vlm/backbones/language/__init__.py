"""The language models by name, and the chat templates by name."""

from vlm.backbones.language.base import LanguageSpec
from vlm.registry import Registry

LANGUAGE: Registry[LanguageSpec] = Registry(__name__, kind="language model")

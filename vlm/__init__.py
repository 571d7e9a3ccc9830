"""Compose, train, check and serve a vision-language model of your own. Public names are imported when they are first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.commands.pretrain import run as train
    from vlm.models.catalog import list_components
    from vlm.models.dual_encoder import DualEncoder
    from vlm.models.open import open_model as load
    from vlm.models.vision_language import VisionLanguageModel

__all__ = ["DualEncoder", "VisionLanguageModel", "list_components", "load", "train"]
__version__ = "0.1.0"

_HOMES = {
    "load": ("vlm.models.open", "open_model"),
    "train": ("vlm.commands.pretrain", "run"),
    "list_components": ("vlm.models.catalog", "list_components"),
    "DualEncoder": ("vlm.models.dual_encoder", "DualEncoder"),
    "VisionLanguageModel": ("vlm.models.vision_language", "VisionLanguageModel"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'vlm' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)

"""Two-tower models of transformers around the tiny text towers, and folders that such models lie in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.backbones.text.base import TextSpec
from vlm.backbones.text.tiny import SPECS

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
CLASSES = {"tiny-clip-text": ("CLIPModel", "CLIPConfig"), "tiny-siglip-text": ("SiglipModel", "SiglipConfig")}


@pytest.fixture(params=sorted(SPECS))
def name(request: pytest.FixtureRequest) -> str:
    """Each tiny text encoder in turn."""
    return request.param


@pytest.fixture
def two_tower() -> Callable[[str], Any]:
    """`two_tower("tiny-clip-text")`: transformers' model of both towers, with random weights, large enough for mistakes to be seen."""
    import torch
    import transformers

    def make(name: str) -> Any:
        model_class, config_class = (getattr(transformers, class_name) for class_name in CLASSES[name])
        text = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1} | dict(SPECS[name].architecture)
        model = model_class(config_class(vision_config=VISION, text_config=text, projection_dim=8)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.6)
        return model

    return make


@pytest.fixture
def folder(two_tower: Callable[[str], Any], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`folder(name, layout)`: a saved model with its tokenizer, and the two-tower model that it came from."""

    def save(name: str, layout: str = "two towers") -> tuple[Path, Any]:
        model = two_tower(name)
        text = model if layout == "two towers" else text_only(model, SPECS[name])
        text.save_pretrained(tmp_path)
        if layout == "text only, with prefix":  # as transformers before 5 wrote SigLIP's
            rename(tmp_path / "model.safetensors")
        SPECS[name].tokenizer(SPECS[name], None).save_pretrained(tmp_path)
        return tmp_path, model

    return save


def text_only(model: Any, spec: TextSpec) -> Any:
    """The text tower alone, as transformers saves it: CLIP's with its projection."""
    import transformers

    if not hasattr(model, "text_projection"):
        return model.text_model
    config = transformers.CLIPTextConfig(**spec.architecture)
    alone = transformers.CLIPTextModelWithProjection(config)
    alone.text_model.load_state_dict(model.text_model.state_dict())
    alone.text_projection.load_state_dict(model.text_projection.state_dict())
    return alone


def rename(file: Path) -> None:
    """Put `text_model.` before every name that lacks it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    bare = {key for key in tensors if not key.startswith(("text_model.", "text_projection."))}
    renamed = {(f"text_model.{key}" if key in bare else key): value for key, value in tensors.items()}
    save_file(renamed, file, metadata={"format": "pt"})

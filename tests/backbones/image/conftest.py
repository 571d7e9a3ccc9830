"""Two-tower models of transformers around the tiny image towers, folders that such models lie in, and pictures of awkward sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from vlm.backbones.image.tiny import SPECS

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
CLASSES = {"tiny-clip-image": ("CLIPModel", "CLIPConfig"), "tiny-siglip-image": ("SiglipModel", "SiglipConfig")}
SIZES = [(32, 32), (40, 40), (61, 37), (37, 61), (20, 33), (32, 15), (35, 32), (32, 37), (103, 32), (47, 500)]  # width, height


@pytest.fixture(params=sorted(CLASSES))
def name(request: pytest.FixtureRequest) -> str:
    """Each tiny half of a published kind of pair in turn."""
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`folder(name)`: a saved two-tower model with weights large enough for mistakes to be seen, and the model."""
    import torch
    import transformers

    def save(name: str, **saving: Any) -> tuple[Path, Any]:
        model_class, config_class = (getattr(transformers, class_name) for class_name in CLASSES[name])
        text = TEXT | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        model = model_class(config_class(vision_config=dict(SPECS[name].architecture), text_config=text, projection_dim=8)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.6)
        model.save_pretrained(tmp_path, **saving)
        return tmp_path, model

    return save


@pytest.fixture
def pixels() -> Tensor:
    """Two random pictures of 32 pixels."""
    import torch

    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def picture(request: pytest.FixtureRequest) -> Image.Image:
    """Noise of each size in turn."""
    width, height = request.param
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))

"""Tiny models that answer, for exports; code of exported folders goes to a folder of the test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.models.build import build
from vlm.models.vision_language import VisionLanguageModel


@pytest.fixture
def answerer() -> Callable[..., VisionLanguageModel]:
    """`answerer("tiny-clip", "tiny-llama", "mlp2x-gelu", rank=4, resize="pad")`: a model in fp32, its connector and adapters stirred."""

    def make(
        vision: str = "tiny-siglip", language: str = "tiny-llama", connector: str = "mlp2x-gelu", *, rank: int = 0, **others
    ) -> VisionLanguageModel:
        config = VisionLanguageConfig(
            vision=vision, language=language, connector=connector, lora=LoRATowers(language=LoRAConfig(rank=rank)), **others
        )
        model = build(config, precision="fp32")
        generator = torch.Generator().manual_seed(1)
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.data.normal_(0, 0.1, generator=generator)
        for tensor in model.connector.buffers():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        return model

    return make


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers copies the code of an exported folder to."""
    from transformers import dynamic_module_utils

    folder = tmp_path / "modules"
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # from the folder of another test
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which transformers adds this one
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    return folder

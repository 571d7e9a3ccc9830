"""Tiny models that answer, for exports."""

from collections.abc import Callable

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

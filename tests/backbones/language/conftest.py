"""A fresh tiny language model of each family."""

from collections.abc import Callable

import pytest

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, build_language
from vlm.backbones.language.lora import LoRAOptions
from vlm.backbones.loading import Load


@pytest.fixture(params=["tiny-llama", "tiny-mistral", "tiny-phi", "tiny-phi3", "tiny-qwen2", "tiny-qwen3"])
def name(request: pytest.FixtureRequest) -> str:
    """Every tiny architecture in turn."""
    return request.param


@pytest.fixture
def tiny() -> Callable[..., HFCausalLM]:
    """`tiny("tiny-phi", lora=...)`: a fresh model of that name."""

    def build(name: str, *, lora: LoRAOptions | None = None, load: Load | None = None) -> HFCausalLM:
        return build_language(LANGUAGE[name], load or Load(None), lora=lora)

    return build

"""A fresh tiny language model of each family."""

from collections.abc import Callable

import pytest

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, build_language
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora


@pytest.fixture(params=["tiny-llama", "tiny-mistral", "tiny-phi", "tiny-phi3", "tiny-qwen2", "tiny-qwen3"])
def name(request: pytest.FixtureRequest) -> str:
    """Every tiny architecture in turn."""
    return request.param


@pytest.fixture
def tiny() -> Callable[..., HFCausalLM]:
    """`tiny("tiny-phi", lora=...)`: a fresh model of that name."""

    def build(name: str, *, lora: LoRAOptions | None = None, load: Load | None = None) -> HFCausalLM:
        language = build_language(LANGUAGE[name], load or Load(None))
        if lora is not None:
            add_lora(language.model, lora)
        return language

    return build

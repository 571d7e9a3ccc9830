"""Tiny compositions, pictures and batches."""

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image

from vlm.backbones.language.tiny import SPECS
from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.data.chat import encode_chat
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import Example
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.generate import Prompt, ask
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ChatBatch

FAMILIES = sorted(SPECS)
# Llama 2, Llama 3 and SmolLM2 are Llama's architecture with templates of their own; base models are asked with `pure`
LLAMAS = ("smollm2", "llama-3", "llama-3.1", "llama-2-chat", "pure")
TEMPLATED = [*({"language": name} for name in FAMILIES), *({"language": "tiny-llama", "template": name} for name in LLAMAS)]


@pytest.fixture(params=FAMILIES)
def language(request: pytest.FixtureRequest) -> str:
    """Every tiny language family in turn."""
    return request.param


@pytest.fixture(params=TEMPLATED, ids=lambda family: "-".join(family.values()))
def family(request: pytest.FixtureRequest) -> dict[str, str]:
    """Every language family in turn, those that differ by the template alone among them; `compose(**family)`."""
    return request.param


@pytest.fixture
def prompts(picture) -> list[Prompt]:
    """No picture, one, and two; of different length."""
    return [
        ask([], "Is there a red square?"),
        ask([picture(1)], "What color is the circle? What shape is in the picture?"),
        ask([picture(2), picture(3)], "Is <image> or <image> gray?"),
    ]


def config_of(
    vision: str = "tiny-siglip",
    language: str = "tiny-llama",
    connector: str = "mlp2x-gelu",
    *,
    rank: int = 0,
    vision_rank: int = 0,
    kind="lora",
    **others,
):
    lora = LoRATowers(language=LoRAConfig(rank=rank, kind=kind), vision=LoRAConfig(rank=vision_rank, kind=kind))
    return VisionLanguageConfig(vision=vision, language=language, connector=connector, lora=lora, **others)


@pytest.fixture
def config() -> Callable[..., VisionLanguageConfig]:
    """`config(language="tiny-phi", rank=4)`: a composition."""
    return config_of


@pytest.fixture
def compose() -> Callable[..., VisionLanguageModel]:
    """`compose(language="tiny-phi", trained=("connector",))`: a model, the same at every call."""

    def make(*names: str, trained: tuple[str, ...] = (), precision: str = "fp32", seed: int = 0, **others) -> VisionLanguageModel:
        return build(config_of(*names, **others), precision=precision, trained=trained, seed=seed)

    return make


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """`picture(3)`: a picture of noise, another for each number."""

    def make(number: int, *, side: int = 32) -> Image.Image:
        noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        return Image.fromarray(noise.numpy())

    return make


@pytest.fixture
def example() -> Callable[..., Example]:
    """`example(model, turns)`: one conversation of alternating texts, its pictures of noise."""

    def make(model: VisionLanguageModel, turns: Sequence[str], *, seed: int = 0) -> Example:
        talk = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
        count = "".join(turns).count("<image>")
        encoded = encode_chat(
            talk,
            template=model.template,
            tokenizer=model.language.tokenizer,
            image_token_id=model.language.image_token_id,
            tokens_per_image=[model.tokens_per_tile] * count,
        )
        size = model.image_policy.size
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        return Example(id=str(seed), ids=encoded.ids, labels=encoded.labels, pixels=pixels)

    return make


@pytest.fixture
def chat_batch(example) -> Callable[..., ChatBatch]:
    """`chat_batch(model, [turns, turns])`: conversations in rows."""

    def make(model: VisionLanguageModel, conversations: Sequence[Sequence[str]]) -> ChatBatch:
        examples = [example(model, turns, seed=i) for i, turns in enumerate(conversations)]
        return collate_singly(examples, pad_id=model.language.tokenizer.pad_token_id)

    return make

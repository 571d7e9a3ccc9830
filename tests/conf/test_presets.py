"""Every preset's composition, assembled at full size on the meta device: tokens a picture, parameters trained and frozen, batches that divide."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora
from vlm.backbones.vision import VISION
from vlm.conf.presets import PRESETS
from vlm.conf.schema import BatchPlan, VisionLanguageConfig
from vlm.data.datasets import DATASETS
from vlm.errors import ConfigError
from vlm.models.build import resolve

FOR_ONE_DEVICE = ("demo", "tiny")

# Tokens a picture: side of the grid of patches, squared.
TOKENS = {
    "efficientnet-lite0-64": 4**2,
    "tiny-siglip": 4**2,
    "in1k-vit-l16-224-augreg": 14**2,
    "clip-l14-224": 16**2,
    "clip-l14-336": 24**2,
    "dinov2-l14-reg-224": 16**2,
    "siglip-b16-384": 24**2,
    "siglip-so400m-224": 16**2,
    "siglip-so400m-384": 27**2,
    "siglip2-so400m-384": 27**2,
    "dinoclip-336-gelu": 24**2,
    "dinosiglip-224": 16**2,
    "dinosiglip-384": 27**2,
}
# 2 matrices of a rank for each adapted layer: rank * (inputs + outputs) * layers
ADAPTERS = {
    "phi2-siglip": 128 * 2 * (2560 + 2560) * 32,
    "phi2-siglip-b16": 2_621_440,  # printed by the fork
    "phi3-dinosiglip-lora": 128 * ((3072 + 9216) + (3072 + 3072) + (3072 + 16_384) + (8192 + 3072)) * 32,
    "demo": 921_600,  # measured: tests/backbones/test_lora.py
    "tiny": 4 * ((32 + 32) + (32 + 16)) * 2,  # half as many heads of keys and values
}


@cache
def vision_backbone(name: str, feature_layer: int | None) -> tuple[nn.Module, torch.Tensor]:
    """The backbone without weights, and what it makes of a picture."""
    spec = VISION[name]
    with torch.device("meta"), torch.no_grad():
        module = spec.build(spec, Load(source=None, feature_layer=feature_layer))
        return module, module(torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8))


@cache
def language_model(name: str, lora: LoRAOptions | None) -> nn.Module:
    """The language model without weights, with its adapter."""
    spec = LANGUAGE[name]
    with torch.device("meta"):
        module = spec.build(spec, Load(source=None))
        if lora is not None:
            add_lora(module, lora)
    return module


def assembled(config: VisionLanguageConfig) -> dict[str, nn.Module]:
    """The three parts; each distinct tower is built once for all presets."""
    parts = resolve(config)
    vision, _ = vision_backbone(config.vision, config.feature_layer)
    with torch.device("meta"):
        connector = parts.connector.build(vision.width, parts.language.width)
    return {"vision": vision, "connector": connector, "language": language_model(config.language, parts.lora.get("language"))}


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def connector_parameters(name: str, width: int, out: int) -> int:
    """Linear layers with bias, by the papers."""
    widths = {"linear": [width, out], "mlp2x-gelu": [width, out, out], "fused-mlp": [width, 4 * width, out, out]}[name]
    return sum((a + 1) * b for a, b in pairwise(widths))


@pytest.mark.parametrize("name", PRESETS)
def test_picture_becomes_tokens_of_the_language_models_width(name):
    config = PRESETS[name].model
    parts = resolve(config)
    _, features = vision_backbone(config.vision, config.feature_layer)
    embedded = assembled(config)["connector"](features)
    assert embedded.shape == (1, TOKENS[config.vision], parts.language.width)
    assert parts.tokens_per_tile == TOKENS[config.vision]


@pytest.mark.parametrize("name", PRESETS)
def test_trained_and_frozen_parameters_add_up(name):
    config = PRESETS[name]
    parts, modules = resolve(config.model), assembled(config.model)
    adapter = ADAPTERS.get(name.split("/")[0], 0) if config.model.lora.language.rank else 0
    own = {
        "vision": parts.vision.num_parameters,
        "connector": connector_parameters(config.model.connector, parts.vision.width, parts.language.width),
        "language": parts.language.num_parameters + adapter,
    }
    assert {part: count(module) for part, module in modules.items()} == own
    trainable = {part: sum(weight.numel() for weight in module.parameters() if weight.requires_grad) for part, module in modules.items()}
    assert {part: trainable[part] for part in config.stage.lr.trained} == {
        part: adapter if part == "language" and adapter else own[part] for part in config.stage.lr.trained
    }
    assert bool(adapter) == ("language" in config.stage.lr.trained and config.model.lora.language.rank > 0)


def test_phi2_fork_has_the_number_of_parameters_that_its_authors_print():
    model = PRESETS["phi2-siglip-b16/finetune"].model
    total = sum(count(module) for module in assembled(model).values())
    cut_off = (51_200 - 50_295) * (2560 + 2560 + 1)  # rows of embeddings and head, and biases, that the fork cuts off
    assert total - cut_off == 2_879_371_639


@pytest.mark.parametrize("name", PRESETS)
def test_batches_divide_on_one_device_and_on_eight(name):
    stage = PRESETS[name].stage
    for world in (1, 8):
        if world == 8 and name.split("/")[0] in FOR_ONE_DEVICE:
            with pytest.raises(ConfigError, match="is not a multiple of"):
                BatchPlan.of(stage, world=world)
            continue
        plan = BatchPlan.of(stage, world=world)
        assert world * plan.per_device * plan.accumulation == stage.global_batch_size
        assert plan.per_device == stage.per_device_batch_size


@pytest.mark.parametrize("name", PRESETS)
def test_data_and_length_fit(name):
    config = PRESETS[name]
    parts, stage = resolve(config.model), config.stage
    assert stage.dataset in DATASETS
    assert parts.template is not None
    assert TOKENS[config.model.vision] < (stage.max_length or parts.language.max_length) <= parts.language.max_length


def test_presets_of_the_issue_exist_with_both_stages():
    named = ("phi2-siglip", "phi2-siglip-b16", "phi3-dinosiglip-lora", "llava-1.5-7b", "llava-1.5-13b", "qwen3-siglip2", "smollm2-siglip")
    assert [f"{name}/{stage}" for name in named for stage in ("align", "finetune") if f"{name}/{stage}" not in PRESETS] == []


@pytest.mark.parametrize(
    ("name", "adapter", "align", "finetune", "data"),
    [
        ("my_phi2_siglip_model", (8, 16.0, 0.05), (64, 8), (16, 2), "llava-lvis4v-lrv"),
        ("dino-siglip-phi3-lora-model", (128, 256.0, 0.05), (64, 8), (32, 4), "llava-lrv"),
    ],
)
def test_forks_of_prismatic_answer_to_their_own_names(name, adapter, align, finetune, data):
    first, last = PRESETS[f"{name}/align"], PRESETS[f"{name}/finetune"]
    assert (first.stage.global_batch_size, first.stage.per_device_batch_size) == align
    assert (last.stage.global_batch_size, last.stage.per_device_batch_size) == finetune
    lora = last.model.lora.language
    assert (lora.rank, lora.alpha, lora.dropout) == adapter
    assert first.model.lora.language.rank == 0
    assert (first.stage.lr.connector, last.stage.lr.connector, last.stage.lr.language, last.stage.weight_decay) == (1e-3, 2e-5, 2e-5, 0.1)
    assert last.stage.dataset == data

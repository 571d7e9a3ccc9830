import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlm
from vlm.conf.schema import LearningRates, LoRAConfig, LoRATowers
from vlm.errors import CheckpointError, ConfigError
from vlm.models.build import build
from vlm.training.start import freeze_unused


def test_init_from_starts_with_the_stored_weights_and_says_so(tiny, caplog):
    aligned = vlm.train(tiny("align"))
    stored = load_file(aligned / "checkpoints" / "step-000004" / "weights.safetensors")
    with caplog.at_level(logging.INFO, logger="vlm"):
        run_dir = vlm.train(tiny("finetune", init_from=aligned, max_steps=1, lr=LearningRates(connector=1e-9, language=1e-9)))
    after = load_file(run_dir / "checkpoints" / "step-000001" / "weights.safetensors")
    for name, tensor in stored.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)
    said = caplog.text
    assert f"from {aligned / 'checkpoints' / 'step-000004'}: connector: {len(stored)} tensors, 1,600 values" in said
    assert "language, which starts as its source has it" in said


def test_init_from_takes_a_unique_prefix_of_a_run(tiny):
    vlm.train(tiny("align", max_steps=1))
    vlm.train(tiny("finetune", max_steps=1, init_from=Path("tiny+al")))
    with pytest.raises(ConfigError, match="2 runs begin with 'tiny'"):
        vlm.train(tiny("finetune", max_steps=1, init_from=Path("tiny"), seed=8))
    with pytest.raises(ConfigError, match=r"no run that begins with 'none'.*tiny\+align\+x7"):
        vlm.train(tiny("finetune", max_steps=1, init_from=Path("none"), seed=8))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"connector": "mlp3x-gelu"}, "has the connector 'mlp2x-gelu', this run 'mlp3x-gelu'. Set --model.connector mlp2x-gelu"),
        ({"vision": "tiny-clip"}, "has the vision 'tiny-siglip', this run 'tiny-clip'"),
        ({"language": "tiny-qwen2"}, "has the language 'tiny-llama', this run 'tiny-qwen2'"),
    ],
)
def test_init_from_refuses_other_parts(tiny, changed, message):
    aligned = vlm.train(tiny("align", max_steps=1))
    config = tiny("finetune", init_from=aligned)
    with pytest.raises(CheckpointError) as caught:
        vlm.train(replace(config, model=replace(config.model, **changed)))
    assert message in str(caught.value)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    "adapter",
    [
        LoRAConfig(rank=8, alpha=8.0),
        LoRAConfig(rank=4, alpha=1.0),
        LoRAConfig(rank=4, alpha=8.0, targets="all-linear"),
        LoRAConfig(rank=4, alpha=8.0, kind="rslora"),
    ],
)
def test_init_from_refuses_another_adapter(tiny, adapter):
    first = vlm.train(tiny("finetune", max_steps=1))
    config = tiny("finetune", init_from=first, seed=8)
    with pytest.raises(CheckpointError, match=r"has the adapter LoRAConfig\(rank=4, alpha=8.0"):
        vlm.train(replace(config, model=replace(config.model, lora=LoRATowers(language=adapter))))


BOTH = LoRATowers(language=LoRAConfig(rank=4, alpha=8.0), vision=LoRAConfig(rank=2, kind="dora"))
RATES = LearningRates(vision=1e-3, connector=1e-3, language=1e-2)


def adapted(config, lora: LoRATowers = BOTH):
    return replace(config, model=replace(config.model, lora=lora))


def test_align_then_adapters_then_more_of_them(tiny):
    """Prismatic's stages, with an adapter on both towers, and a run that goes on from them."""
    aligned = vlm.train(tiny("align", max_steps=1))
    first = vlm.train(adapted(tiny("finetune", init_from=aligned, max_steps=2, lr=RATES)))
    stored = load_file(first / "checkpoints" / "step-000002" / "weights.safetensors")
    assert {name.split(".")[0] for name in stored if ".lora_" in name} == {"vision", "language"}
    assert all(".lora_" in name or name.startswith("connector.") for name in stored)
    second = vlm.train(adapted(tiny("finetune", init_from=first, max_steps=1, seed=8, lr=LearningRates(vision=1e-9, connector=1e-9, language=1e-9))))
    after = load_file(second / "checkpoints" / "step-000001" / "weights.safetensors")
    assert after.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)


def test_init_from_refuses_another_rank_of_the_vision_adapter(tiny):
    first = vlm.train(adapted(tiny("finetune", max_steps=1, lr=RATES)))
    other = LoRATowers(language=BOTH.language, vision=LoRAConfig(rank=3, kind="dora"))
    with pytest.raises(CheckpointError, match=r"has the adapter LoRAConfig\(rank=2, .* of vision, .*rank=3.* Set --model.lora.vision to the same"):
        vlm.train(adapted(tiny("finetune", init_from=first, seed=8, lr=RATES), other))


def test_dropout_may_change_between_stages(tiny):
    first = vlm.train(adapted(tiny("finetune", max_steps=1, lr=RATES)))
    vlm.train(adapted(tiny("finetune", max_steps=1, init_from=first, seed=8, lr=RATES), replace(BOTH, vision=replace(BOTH.vision, dropout=0.1))))


def test_init_from_names_how_pictures_were_prepared_otherwise(tiny, caplog):
    aligned = vlm.train(tiny("align", max_steps=1))
    config = tiny("finetune", init_from=aligned, max_steps=1)
    vlm.train(replace(config, model=replace(config.model, resize="pad")))
    assert "was trained with resize 'squash', this run uses 'pad'" in caplog.text


def test_connector_of_the_checkpoint_is_not_overwritten_by_a_ridge_start(tiny, caplog):
    aligned = vlm.train(tiny("align", max_steps=1))
    config = tiny("finetune", init_from=aligned, max_steps=1)
    with caplog.at_level(logging.INFO, logger="vlm"):
        vlm.train(replace(config, model=replace(config.model, connector_init="ridge")))
    assert "ridge start" not in caplog.text


def test_towers_other_than_those_of_the_checkpoint_are_refused(tiny, monkeypatch):
    aligned = vlm.train(tiny("align", max_steps=1))
    monkeypatch.setattr("vlm.backbones.vision.tiny.SEED", 1)
    with pytest.raises(CheckpointError, match=r"The vision weights are not those that .* was trained with: fingerprint"):
        vlm.train(tiny("finetune", init_from=aligned, max_steps=1))


@pytest.mark.parametrize("vision", ["tiny-siglip", "tiny-clip", "tiny-dinov2", "tiny-fused"])
def test_weights_behind_the_chosen_layer_are_frozen_and_all_others_get_a_gradient(tiny, vision):
    config = replace(tiny().model, vision=vision)
    model = build(config, precision="fp32", trained=("vision", "connector"))
    before = sum(p.numel() for p in model.vision.parameters())
    frozen = freeze_unused(model)
    assert 0 < frozen < before
    size = model.image_policy.size
    model.encode_images(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.vision.parameters())
    assert freeze_unused(model) == 0


def test_a_frozen_backbone_is_left_alone(tiny):
    assert freeze_unused(build(tiny().model, precision="fp32", trained=("connector",))) == 0

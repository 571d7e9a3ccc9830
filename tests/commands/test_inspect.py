from dataclasses import replace

import pytest
from rich.console import Console

from vlm.__main__ import main
from vlm.backbones.lora import is_lora
from vlm.commands import terminal
from vlm.conf.presets import PRESETS
from vlm.models.build import build


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-siglip", ["vision tiny-siglip", "12,256", "32 x 32", "SiglipVisionModel"]),
        ("tiny-llama", ["language tiny-llama", "43,168", "512 tokens", "LlamaForCausalLM"]),
        ("mlp2x-gelu", ["connector mlp2x-gelu", "arXiv:2310.03744", "Linear"]),
        ("tiny/finetune", ["preset tiny/finetune", "tokens an image", "16", "language at 0.01", "1,600", "runs/tiny+finetune+x7"]),
        ("tiny/finetune", ["tiny-siglip: 12,256 parameters, "]),
        ("phi2-siglip/align", ["google/siglip-so400m-patch14-384, Apache-2.0, arXiv:2303.15343", "microsoft/phi-2, MIT", "729"]),
        ("siglip-so400m-384", ["tokens an image  729 (one a patch)"]),
        ("easy-vqa", ["dataset easy-vqa", "train, test", "MIT", "pip package easy-vqa", "vlm preprocess --dataset-id easy-vqa"]),
        ("gelu-mlp", ["connector mlp2x-gelu"]),
        (
            "tiny-clip-image",
            ["image tiny-clip-image", "10,224", "32 x 32 (crop, bicubic)", "8: class token after the last norm, projected", "CLIPVisionModel"],
        ),
        ("dinov2-l14-reg-224-image", ["224 x 224 (crop, short side to 256, bicubic)", "304,372,736"]),
        ("fused:tiny-clip-image+tiny-siglip-image", ["image fused:tiny", "24: "]),
        ("fused:tiny-clip+tiny-siglip", ["vision fused:tiny"]),
        ("phi-2", ["2,779,683,840", "2,048 tokens"]),
        (
            "ape-demo/align",
            [
                "preset ape-demo/align",
                "joint width      384",
                "image_head at 0.001 (1,277,952)",
                "text_head at 0.001 (147,840)",
                "teacher          all-minilm",
            ],
        ),
        ("tiny-ape/align", ["teacher          none", "10,224 parameters", "image_head"]),
    ],
)
def test_part_or_preset_is_shown_without_weights(name, words, capsys):
    assert main(["inspect", name]) == 0
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []


def test_dataset_has_no_modules(capsys):
    assert main(["inspect", "easy-vqa"]) == 0
    assert "module" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny/align", "tiny/finetune", "demo/finetune"])
def test_preset_counts_what_training_would_train(name):
    from vlm.models.catalog import inspect

    config = PRESETS[name]
    rank, rates = config.model.lora.language.rank, config.stage.lr.trained
    facts = inspect(name).facts
    if rank:
        assert f"rank-{rank} adapter" in facts["trained"]
    if name.startswith("tiny"):
        model = build(config.model, precision="fp32", trained=rates)
        assert facts["parameters"] == f"{sum(weight.numel() for name, weight in model.named_parameters() if not is_lora(name)):,}"
        assert facts["trained"].startswith(f"{sum(weight.numel() for weight in model.parameters() if weight.requires_grad):,}: ")
    else:
        assert "921,600" in facts["trained"]  # measured: tests/backbones/test_lora.py


def test_unknown_name_gets_the_nearest(capsys):
    assert main(["inspect", "siglip-so400m-383"]) == 2
    assert "Did you mean 'siglip-so400m-384'" in capsys.readouterr().err


def test_preset_with_an_adapter_on_the_vision_backbone_counts_it(monkeypatch):
    from vlm.conf.schema import LoRAConfig, LoRATowers
    from vlm.models.catalog import inspect

    preset = PRESETS["tiny/finetune"]
    model = replace(preset.model, lora=LoRATowers(vision=LoRAConfig(rank=3, kind="dora")))
    stage = replace(preset.stage, lr=replace(preset.stage.lr, vision=1e-4, language=None))
    monkeypatch.setattr("vlm.models.catalog.PRESETS", {"tiny/finetune": replace(preset, model=model, stage=stage)})
    count = 4 * 2 * (2 * 3 * 16 + 16)  # four projections of two layers of width 16: two matrices and the lengths of the rows
    assert f"rank-3 adapter of vision (dora) at 0.0001 ({count:,})" in inspect("tiny/finetune").facts["trained"]


def test_narrow_terminal_folds_names_and_cuts_no_number(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "console", lambda: Console(width=60, highlight=False))
    assert main(["inspect", "phi2-siglip/finetune"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert all(number in said for number in ("428,225,600", "2,779,683,840", "131,123,200"))

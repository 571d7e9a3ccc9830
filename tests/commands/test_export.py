"""`vlm export hf` and `vlm export gguf` on a run with an adapter; `vlm export dual` is tested in tests/export/test_dual.py."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import vlm
from vlm.__main__ import main
from vlm.conf.schema import VisionLanguageConfig
from vlm.models import checkpoint
from vlm.models.build import build


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """A run with an adapter in `runs/`."""
    run_dir = vlm.train(tiny("finetune", max_steps=2))
    monkeypatch.chdir(tmp_path)
    return run_dir


def test_hf_folder_has_a_card_and_opens_in_transformers(run, tmp_path, capsys):
    assert main(["export", "hf", "tiny+fin", "mine", "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "32 of 32 greedy tokens are equal" in said[0]
    assert any(line.startswith("with the stored type: logits differ by up to") for line in said)
    assert said[-1] == "mine"
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    dataset = json.loads((run / "config.json").read_text())["stage"]["dataset"]
    assert all(
        words in card
        for words in (
            "pipeline_tag: image-text-to-text",
            f"Trained on: {Path(dataset).name} (a local path).",
            "# mine",
            "32 of 32",
            "tiny-siglip",
            "tiny-llama",
        )
    )
    assert str(tmp_path.parent) not in card  # no path of this machine
    assert len({path.stat().st_mode for path in (tmp_path / "mine").iterdir()}) == 1  # weights are as readable as the rest
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "mine")
    AutoProcessor.from_pretrained(tmp_path / "mine")


def test_what_llava_cannot_say_is_refused_and_kept_or_written_with_code_by_the_flags(own_modules, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = VisionLanguageConfig(vision="tiny-siglip", language="tiny-phi", connector="mlp2x-gelu")
    model = build(config, precision="fp32", trained=("connector", "language"))
    torch.nn.init.constant_(model.language.model.lm_head.bias, 0.25)
    checkpoint.save(model, config, tmp_path / "phi")
    assert main(["export", "hf", "phi", "stock"]) == 2
    refused = capsys.readouterr().err
    assert "the language model's head has a bias (largest value 0.25), and LLaVA's has none" in refused
    assert "`--with-code` writes a folder" in refused and "`--allow-lossy` keeps the difference and says how large it is." in refused
    assert not (tmp_path / "stock").exists()
    assert main(["export", "hf", "phi", "stock", "--allow-lossy"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert "logits differ by up to 0.25" in first and any("head has a bias" in line for line in others)
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "llava"
    assert main(["export", "hf", "phi", "coded", "--with-code"]) == 0
    assert "32 of 32 greedy tokens are equal" in capsys.readouterr().out.splitlines()[0]
    assert "AutoModelForImageTextToText" in json.loads((tmp_path / "coded" / "config.json").read_text())["auto_map"]
    assert "trust_remote_code=True" in (tmp_path / "coded" / "README.md").read_text(encoding="utf-8")


def test_gguf_writes_two_files(run, tmp_path, capsys):
    pytest.importorskip("gguf")
    assert main(["export", "gguf", str(run), "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["mine/mine-F16.gguf", "mine/mmproj-mine-F16.gguf"]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["mine-F16.gguf", "mmproj-mine-F16.gguf"]


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys, format):
    (tmp_path / "there").mkdir()
    assert main(["export", format, str(run), "there"]) == 2
    assert main(["export", format, "nobody", "new"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlm export:")]
    assert "there exists. Name a folder that" in lines[0]
    assert "no run that begins with 'nobody'" in lines[1]
    assert not (tmp_path / "new").exists()


def test_import_of_an_export_is_the_model(run, data, capsys):
    """Through the folder and back: `vlm import hf` reads what `vlm export hf` wrote."""
    picture = str(data.parent / "red.png")
    answers = []
    assert main(["export", "hf", str(run), "out"]) == 0
    assert main(["import", "hf", "out", "back"]) == 0  # it finds the chat template by what the exported one writes
    capsys.readouterr()
    for name in (str(run), "back"):
        question = [name, "What color?", "--image", picture, "--max-new-tokens", "8", "--precision", "fp32", "--device", "cpu"]
        assert main(["chat", *question]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""

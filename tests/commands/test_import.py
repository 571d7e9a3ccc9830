"""`vlm import` from the command line, and what the other commands make of its result."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlm.__main__ import main
from vlm.conf.schema import VisionLanguageConfig
from vlm.models import checkpoint
from vlm.models.build import build

GOLDEN = Path(__file__).parents[1] / "data" / "prismatic_golden"
LORA = "llava-lvis4v-lrv+my_phi2_siglip_model+stage-finetune+x7"
SOURCES = ["--vision-source", str(GOLDEN / "towers"), "--language-source", str(GOLDEN / "phi2" / "llm")]
SOURCES += ["--tokenizer-source", str(GOLDEN / "phi2" / "tokenizer")]


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """The fork's run, imported to `mine`."""
    monkeypatch.chdir(tmp_path)
    assert main(["import", "prismatic", str(GOLDEN / LORA), "mine", *SOURCES]) == 0
    return tmp_path / "mine"


def test_imported_run_chats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import", "prismatic", str(GOLDEN / LORA), "mine", *SOURCES]) == 0
    said = capsys.readouterr().out
    assert len({path.stat().st_mode for path in (tmp_path / "mine").rglob("*") if path.is_file()}) == 1
    assert "asked as it was trained, with a blank token before the answer" in said
    assert "mine: hf:./vision + mlp2x-gelu + hf:./language, template prism-lora-phi-2\nTalk to it: vlm chat mine" in said
    question = ["mine", "What colour is the shape?", "--image", str(GOLDEN / "data" / "images" / "001.png"), "--precision", "fp32"]
    assert main(["chat", *question]) == 0
    assert capsys.readouterr().out == "yellow.\n"


def test_imported_run_goes_on_and_merges(imported, capsys):
    """Its adapter is trained further, with end tokens hidden as before; then it is folded."""
    parts = ["--model.vision", f"hf:{imported}/vision", "--model.language", f"hf:{imported}/language", "--model.template", "prism-lora-phi-2"]
    lora = checkpoint.read_manifest(imported).config.lora.language
    parts += ["--model.lora.language.rank", str(lora.rank), "--model.lora.language.alpha", str(lora.alpha)]
    parts += ["--model.lora.language.targets", lora.targets, "--stage.dataset", str(GOLDEN / "data" / "instruct.json"), "--stage.max-steps", "2"]
    stage = ["--stage.global-batch-size", "2", "--stage.per-device-batch-size", "2", "--stage.max-length", "128", "--init-from", "mine"]
    assert main(["pretrain", "tiny/finetune", *parts, *stage]) == 0
    assert main(["pretrain", "tiny/finetune", *parts, *stage, "--overwrite", "--stage.pack-length", "256"]) == 2
    assert "hides end tokens from later ones, which is only possible with one conversation a row" in capsys.readouterr().err
    assert main(["merge", "mine", "merged"]) == 0
    assert "merged language; largest difference of a logit" in capsys.readouterr().out


MM = {"model_type": "llava_llama", "mm_vision_tower": "tower", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32, "use_mm_proj": True}
MM |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
PROJECTOR = {"model_type": "projector", "visual_hidden_size": 32, "llm_hidden_size": 32, "depth": 2, "hidden_act": "gelu", "bias": True}


def projector(model):
    """Its weights by the names in a stack of two linear layers with GELU between them."""
    layers = {"0": model.connector.body[0], "2": model.connector.readout}
    return {f"{place}.{name}": weight for place, layer in layers.items() for name, weight in layer.state_dict().items()}


def write_llava(model, path):
    """As LLaVA's train.py saves it: projector and language model in one file, the frozen tower elsewhere."""
    weights = model.language.model.state_dict() | {f"model.mm_projector.{name}": weight for name, weight in projector(model).items()}
    model.vision.model.save_pretrained("tower")
    return weights, model.language.model.config.to_dict() | MM


def write_xtuner(model, path):
    """xtuner's own layout: projector and tower in folders, the language model beside them."""
    (path / "projector").mkdir()
    save_file({f"model.{name}": weight for name, weight in projector(model).items()}, path / "projector" / "model.safetensors")
    (path / "projector" / "config.json").write_text(json.dumps(PROJECTOR), encoding="utf-8")
    model.vision.model.save_pretrained(path / "visual_encoder")
    return model.language.model.state_dict(), model.language.model.config.to_dict()


@pytest.mark.parametrize(
    ("kind", "write", "template", "vision"),
    [("llava", write_llava, "vicuna-v1", "hf:{}/tower"), ("xtuner", write_xtuner, "llama-3", "hf:./vision")],
    ids=["llava", "xtuner"],
)
def test_checkpoint_of_another_trainer_answers_as_its_parts(tmp_path, monkeypatch, capsys, kind, write, template, vision):
    monkeypatch.chdir(tmp_path)
    model = build(VisionLanguageConfig(vision="tiny-clip", language="tiny-llama", template=template, resize="pad"), precision="fp32")
    torch.nn.init.normal_(model.connector.readout.weight, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "llava-v1.5-tiny"
    path.mkdir()
    model.language.tokenizer.save_pretrained(path)
    weights, config = write(model, path)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    Image.new("RGB", (40, 30), "teal").save("teal.png")
    said = model.chat([Image.open("teal.png")], "What color?", max_new_tokens=8)
    assert main(["import", kind, str(path), "mine"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2] == f"mine: {vision.format(tmp_path)} + mlp2x-gelu + hf:./language, template {template}"
    assert told[-1] == 'Talk to it: vlm chat mine --image PICTURE "What is this?"'
    asked = ["mine", "What color?", "--image", "teal.png", "--max-new-tokens", "8", "--precision", "fp32", "--device", "cpu"]
    assert main(["chat", *asked]) == 0
    assert capsys.readouterr().out == f"{said}\n" != "\n"
    assert main(["import", kind, str(path), "mine"]) == 2
    assert "mine exists" in capsys.readouterr().err
    (path / "model.safetensors").unlink()
    assert main(["import", kind, str(path), "other"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "other").exists()


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    assert main(["import", "hf", str(tmp_path), str(tmp_path / "out")]) == 2
    assert main(["import", "llava", str(tmp_path), str(tmp_path / "out"), "--prompt", "original"]) == 2
    assert main(["import", "prismatic", str(GOLDEN / LORA), str(tmp_path / "out"), "--vision-source", str(GOLDEN / "towers")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("vlm import: ") for line in lines] == [True] * 3
    assert "config.json cannot be read" in lines[0] and "--prompt and --lora-alpha are for prismatic" in lines[1]
    assert "--language-source" in lines[2] and "--model.language-source" not in lines[2]

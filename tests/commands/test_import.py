"""`vlm import` from the command line, and what the other commands make of its result."""

from pathlib import Path

import pytest

from vlm.__main__ import main
from vlm.models import checkpoint

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


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    assert main(["import", "hf", str(tmp_path), str(tmp_path / "out")]) == 2
    assert main(["import", "llava", str(tmp_path), str(tmp_path / "out"), "--prompt", "original"]) == 2
    assert main(["import", "prismatic", str(GOLDEN / LORA), str(tmp_path / "out"), "--vision-source", str(GOLDEN / "towers")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("vlm import: ") for line in lines] == [True] * 3
    assert "config.json cannot be read" in lines[0] and "--prompt and --lora-alpha are for prismatic" in lines[1]
    assert "--language-source" in lines[2] and "--model.language-source" not in lines[2]

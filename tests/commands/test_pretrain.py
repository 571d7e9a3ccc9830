import json

import pytest
from captioned_squares import write_squares
from tiny_data import losses, metrics

from vlm.__main__ import main


@pytest.fixture
def pretrain(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        return main(["pretrain", *map(str, argv)])

    return run


def test_command_prints_the_run_folder_and_the_line_to_chat(pretrain, data, capsys):
    assert pretrain("tiny/align", "--stage.dataset", data, "--stage.max-steps", 2) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "runs/tiny+align+x7"
    assert "vlm chat runs/tiny+align+x7 --image" in said.out
    assert "tiny+align+x7 2/2  loss" in said.err


def test_contrastive_run_ends_with_the_line_to_measure_it_on_its_validation_set(pretrain, tmp_path, capsys):
    train, held_out = write_squares(tmp_path / "squares"), write_squares(tmp_path / "squares", "held", tint=99)
    settings = ("--stage.dataset", train, "--stage.global-batch-size", 6, "--stage.max-steps", 1, "--device", "cpu")
    assert pretrain("tiny-ape/align", *settings, "--stage.validation", held_out, "--overwrite") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"Measure it: vlm evaluate retrieval {held_out} --model runs/tiny-ape+align+x7"
    assert main(line.removeprefix("Measure it: vlm ").split()) == 0


def test_run_runs_again_from_its_stored_config_and_is_equal(pretrain, data, tmp_path):
    assert pretrain("tiny/finetune", "--stage.dataset", data, "--stage.lr.vision", "1e-4") == 0
    run_dir = tmp_path / "runs" / "tiny+finetune+x7"
    config, curve = (run_dir / "config.json").read_text(encoding="utf-8"), losses(run_dir)
    assert pretrain("runs/tiny+finetune+x7/config.json") == 2
    assert pretrain("runs/tiny+finetune+x7/config.json", "--overwrite") == 0
    assert (run_dir / "config.json").read_text(encoding="utf-8") == config
    assert losses(run_dir) == curve
    assert json.loads(config)["stage"]["lr"] == {"vision": 1e-4, "connector": 1e-3, "language": 1e-2}


def test_triple_that_no_preset_has(pretrain, data, tmp_path):
    parts = ("--model.vision", "tiny-fused", "--model.language", "tiny-phi", "--model.connector", "fused-mlp")
    assert pretrain("tiny/finetune", *parts, "--stage.dataset", data, "--stage.max-steps", 1) == 0
    assert (tmp_path / "runs" / "tiny-fused-fused-mlp-tiny-phi+finetune+x7" / "checkpoints" / "step-000001").is_dir()


def test_wandb_offline_lies_in_the_run_folder(pretrain, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    options = ("--tracking.trackers", "jsonl", "wandb", "--tracking.num-samples", 2)
    assert pretrain("tiny/align", "--stage.dataset", data, "--stage.validation", data, *options) == 0
    run_dir = tmp_path / "runs" / "tiny+align+x7"
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    assert len(list((offline / "files" / "media" / "images").rglob("*.png"))) == 2
    assert len([line for line in metrics(run_dir) if "loss" in line]) == 4

"""`vlm embed`: training finds the vectors, and runs and presets name the same ones."""

from dataclasses import replace

import pytest
from captioned_squares import write_squares
from PIL import Image

import vlm
from vlm.__main__ import main
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.training import contrastive


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny run on twelve squares, looked at on twelve others."""
    monkeypatch.chdir(tmp_path)
    preset = CONTRASTIVE_PRESETS["tiny-ape/align"]
    train, held_out = write_squares(tmp_path / "squares"), write_squares(tmp_path / "squares", "held", tint=99)
    stage = replace(preset.stage, dataset=str(train), validation=str(held_out), global_batch_size=6, max_steps=1)
    return replace(preset, stage=stage, device="cpu", precision="fp32")


def test_training_finds_the_vectors_and_loads_no_encoder_and_a_run_names_the_same_ones(config, monkeypatch, capsys, tmp_path):
    for data in (config.stage.dataset, config.stage.validation):
        assert main(["embed", data, "--model", "tiny-ape/align", "--precision", "fp32"]) == 0
    assert "12 pictures, width " in (said := capsys.readouterr().out) and "24 captions, width " in said
    before = sorted(path.name for path in (tmp_path / "data" / "features").iterdir())
    monkeypatch.setattr(contrastive, "build_encoder", lambda *_, **__: pytest.fail("loaded"))
    run = vlm.train(config)
    for model in (str(run), "tiny-clip"):  # the heads of a run do not change the encoders' vectors, nor do those of a pair without heads
        assert main(["embed", config.stage.dataset, "--model", model]) == 0
    assert sorted(path.name for path in (tmp_path / "data" / "features").iterdir()) == before


def test_a_folder_of_pictures_alone_has_vectors_of_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.jpg"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "mine" / name)
    assert main(["embed", "mine", "--model", "tiny-clip"]) == 0
    assert capsys.readouterr().out.startswith("2 pictures, width ")
    assert main(["embed", "mine", "--model", "tiny-clip", "--sides", "text"]) == 2
    assert "mine has no captions. Leave --sides text out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["squares/train.json"], "Say which model: --model with a run, a published pair"),
        (["squares/train.json", "--model", "tiny/align"], "tiny/align is a preset of a model that answers. Name a contrastive one"),
        (["squares/train.json", "--model", "nobody"], "There is no run that begins with 'nobody'"),
        (["gone.json", "--model", "tiny-clip"], "There is no file or folder gone.json"),
        (
            ["squares/train.json", "--model", "tiny-clip", "--image-source", "no/such/folder"],
            "'no/such/folder'. Name a local folder with --image-source and --text-source",
        ),
    ],
)
def test_names_that_are_wrong_are_one_line(config, capsys, line, said):
    assert main(["embed", *line]) == 2
    assert said in capsys.readouterr().err

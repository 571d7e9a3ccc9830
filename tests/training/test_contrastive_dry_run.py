"""The estimate of a contrastive run, without weights, tokenizers or data, against what one computes by hand and what a run does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import vlm
from vlm.backbones.text import base
from vlm.conf.contrastive import ContrastiveConfig, DistillConfig, PairAssumptions
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.errors import ConfigError
from vlm.training.contrastive_dry_run import describe, dry_run

IMAGES, CAPTIONS, WIDTH, TEACHER = 113_287, 566_747, 384, 512


@pytest.fixture(autouse=True)
def _without_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tokenizer, and an empty folder to be in."""
    monkeypatch.setattr(base, "auto_tokenizer", lambda *_: pytest.fail("A dry run must not load anything."))
    monkeypatch.chdir(tmp_path)


def changed(name: str, *, assume: PairAssumptions | None = None, **stage) -> ContrastiveConfig:
    config = CONTRASTIVE_PRESETS[name]
    return replace(config, stage=replace(config.stage, **stage), assume=assume or PairAssumptions())


@pytest.mark.parametrize("name", list(CONTRASTIVE_PRESETS))
def test_every_preset_is_estimated(name: str):
    config = changed(name, assume=PairAssumptions(num_images=100_000))
    text = "\n".join(describe(dry_run(config)))
    assert all(word in text for word in ("image encoder", "trained", "Global batch", "GiB", "optimizer", "Steps", "TFLOP a step", "an epoch of"))
    assert "unknown" not in text


def test_minilm_on_coco_takes_what_one_computes_by_hand():
    run = dry_run(changed("ape-minilm/align", assume=PairAssumptions(device="a100", mfu=0.5)))
    assert (run.num_images, run.num_captions, run.num_steps) == (IMAGES, CAPTIONS, 20 * (IMAGES // 4096))
    assert {side: run.bytes_of(encoder) for side, encoder in run.encoders.items()} == {
        "image": 2 * IMAGES * 512,
        "text": 2 * CAPTIONS * WIDTH,
        "teacher": 2 * CAPTIONS * TEACHER,
    }
    assert run.encoders["image"].flops == pytest.approx(8.8e9, rel=0.01)  # 4.4 G multiplications, as open_clip's table says of ViT-B-32's image half
    head = 384 * 1536 + 2 * 1536**2 + 1536 * 512
    assert run.heads == {"image_head": (0, 0), "text_head": (head, head), "scale": (1, 1)}
    assert sum(run.state.values()) == pytest.approx(16 * head, rel=1e-3)  # weights, gradients and two averages in fp32, and standardization
    products = 2 * (3 * head - 384 * 1536)  # forward and backward; cached vectors need no gradient
    similarities = 2 * 512 * 4096 * 4  # contrastive: see test_head_flops; distillation without the structure term compares no pairs
    assert run.useful == pytest.approx(4096 * (products + similarities), rel=1e-6)
    assert run.seconds(run.useful) == pytest.approx(run.useful / (0.5 * 312e12))


def test_devices_share_the_time_and_must_share_the_batch():
    one, two = (dry_run(changed("tiny-ape/align", assume=PairAssumptions(num_devices=n, num_images=100))) for n in (1, 2))
    assert one.useful == two.useful and one.seconds(1e9) == 2 * two.seconds(1e9)
    with pytest.raises(ConfigError, match="Take 15 or 18"):
        dry_run(changed("tiny-ape/align", assume=PairAssumptions(num_devices=3, num_images=100)))
    with pytest.raises(ConfigError, match="the data has 9 images"):
        dry_run(changed("tiny-ape/align", assume=PairAssumptions(num_images=9)))


def test_unknown_data_is_said_to_be_unknown():
    text = "\n".join(describe(dry_run(changed("tiny-ape/align", dataset="nobody/knows.json", max_steps=None))))
    assert "Data: unknown, because the size of 'nobody/knows.json' is not; prepare it, or set --assume.num-images." in text
    assert "Steps: unknown." in text


def test_data_that_is_here_and_texts_without_images_are_counted(tmp_path: Path):
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": f"{i}.jpg", "captions": ["a", "b", "c"]} for i in range(40)]), encoding="utf-8")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    distill = DistillConfig(teacher="native", texts=("names.txt",))
    run = dry_run(changed("tiny-ape/align", dataset="pairs.json", distill=distill, max_steps=None, epochs=2.0))
    assert (run.num_images, run.num_captions, run.num_texts, run.num_steps) == (40, 120, 2, 4)
    assert run.encoders["text"].items == run.encoders["teacher"].items == 122
    assert run.encoders["teacher"].name == "tiny-clip-text"


def test_train_prints_the_estimate_and_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert vlm.train(replace(changed("tiny-ape/align"), dry_run=True)) is None
    assert "tiny-ape+align+x7: dry run, nothing is trained" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import rows, write

import vlm
from vlm.backbones.language import base
from vlm.conf.presets import PRESETS
from vlm.conf.schema import AssumeConfig, ParallelConfig, TrainConfig
from vlm.errors import ConfigError, UnknownNameError
from vlm.training.dry_run import DryRun, describe, dry_run, published_samples

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 20
FAST = ("tiny/align", "tiny/finetune", "demo/finetune", "phi2-siglip/finetune", "llava-1.5-7b/finetune")


@pytest.fixture(autouse=True)
def _without_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tokenizer, no weights, and an empty folder to be in."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("A dry run must not load anything.")

    monkeypatch.setattr(base, "auto_tokenizer", refuse)
    monkeypatch.setattr(base, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)


def assumed(name: str, **values) -> TrainConfig:
    return replace(PRESETS[name], assume=AssumeConfig(**values))


def check(name: str) -> DryRun:
    started = time.process_time()
    run = dry_run(PRESETS[name])
    assert time.process_time() - started < MAX_SECONDS
    text = "\n".join(describe(run))
    assert all(word in text for word in ("trained", "Tokens a sample", "TFLOP a step", "weights", "optimizer", "activations", "Steps", "Time"))
    assert run.useful <= sum(run.flops.values())
    assert run.memory.total > run.memory.weights > 0
    return run


@pytest.mark.parametrize("name", FAST)
def test_a_preset_is_estimated_without_weights_tokenizer_or_data(name: str):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_estimated(name: str):
    check(name)


def test_siglip_and_phi2_take_what_one_computes_by_hand():
    run = dry_run(assumed("phi2-siglip/align", mfu=0.5, device="h200"))
    samples = PRESETS["phi2-siglip/align"].stage.global_batch_size
    assert run.row.length == 729 + 150
    last_mlp = 2 * 2 * 2 * 2560 * 10_240 * 729  # of the last layer, where no label needs it
    assert run.useful / samples == pytest.approx(10.01e12 - last_mlp, rel=3e-3)  # the vision tower stops a layer early
    assert samples / run.seconds_per_step == pytest.approx(49.4 * 10.01 / 9.857, rel=3e-3)
    assert run.num_steps == -(-558_128 // 256)
    assert run.parameters == {"vision": (428_225_600, 0), "connector": (9_507_840, 9_507_840), "language": (2_779_683_840, 0)}
    assert run.memory.weights == pytest.approx(2 * (428_225_600 + 2_779_683_840) + 4 * 9_507_840, rel=1e-4)


def test_devices_share_the_work_and_cut_the_batch():
    one, two = (dry_run(assumed("tiny/align", num_devices=n)) for n in (1, 2))
    assert two.useful == one.useful
    assert two.seconds_per_step == pytest.approx(one.seconds_per_step / 2)
    assert (one.plan.accumulation, two.plan.accumulation) == (2, 1)
    with pytest.raises(ConfigError, match="global-batch-size"):
        dry_run(assumed("tiny/align", num_devices=3))


def test_checkpointing_costs_flops_and_saves_memory():
    config = PRESETS["smollm2-siglip/finetune"]
    plain, checkpointed = (dry_run(replace(config, stage=replace(config.stage, gradient_checkpointing=parts))) for parts in ((), ("language",)))
    assert checkpointed.useful == pytest.approx(plain.useful)
    assert 1.2 < sum(checkpointed.flops.values()) / sum(plain.flops.values()) < 4 / 3
    assert checkpointed.memory.activations < plain.memory.activations / 4


def test_packed_rows_hold_several_samples():
    config = PRESETS["tiny/align"]
    run = dry_run(replace(config, stage=replace(config.stage, pack_length=100), assume=AssumeConfig(text_tokens=30)))
    assert run.row.samples == 100 // (16 + 30)
    assert "hold 2 samples" in "\n".join(describe(run))


def test_prepared_data_is_counted_before_published_sizes(tmp_path: Path):
    mine = write(tmp_path / "mine")
    config = PRESETS["phi2-siglip/align"]
    assert published_samples(config) == 558_128
    here = replace(config, stage=replace(config.stage, dataset=str(mine)))
    assert published_samples(here) == len(rows())
    half = replace(config, stage=replace(config.stage, dataset="llava-laion-cc-sbu-558k:0.5x,llava-v1.5-instruct"))
    assert published_samples(half) == 558_128 // 2 + 665_298


def test_an_unknown_size_is_said():
    config = PRESETS["tiny/align"]
    run = dry_run(replace(config, stage=replace(config.stage, dataset="nobody/knows.json", max_steps=None)))
    assert run.num_steps is None
    assert "unknown" in "\n".join(describe(run))


def test_an_unknown_device_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="H100"):
        dry_run(assumed("tiny/align", device="h101"))


def test_a_picture_that_fills_the_row_is_refused():
    config = PRESETS["tiny/align"]
    with pytest.raises(ConfigError, match="16 tokens"):
        dry_run(replace(config, stage=replace(config.stage, max_length=16)))


def test_the_command_prints_and_makes_no_run_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert vlm.train(replace(PRESETS["tiny/align"], dry_run=True)) is None
    assert "nothing is trained" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_takes_less_than_twenty_seconds():
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py"), "phi2-siglip/finetune", "--dry-run", "--assume.device", "a100"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "312 TFLOP/s" in done.stdout
    # of the processor, so that other work on the machine does not count; most of it is the import of transformers
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_SECONDS


def test_devices_that_share_a_copy_need_less_and_say_so():
    def estimate(parallel):
        return dry_run(replace(assumed("llava-1.5-7b/finetune", num_devices=8), parallel=parallel))

    whole, shared, grouped = map(estimate, (ParallelConfig("ddp"), ParallelConfig("fsdp"), ParallelConfig("hsdp", shard_size=4)))
    assert [run.shards for run in (whole, shared, grouped)] == [1, 8, 4]
    assert shared.memory.total < grouped.memory.total < whole.memory.total
    assert "weights shared by 4 devices" in "\n".join(describe(grouped))

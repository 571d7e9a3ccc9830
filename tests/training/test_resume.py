"""Interrupted runs go on as if nothing had happened: weights bit-equal to those of an undisturbed run."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import losses, metrics, write

import vlm
from vlm.commands.pretrain import run
from vlm.conf.schema import LoRAConfig, LoRATowers
from vlm.errors import CheckpointError, ConfigError, DataFormatError, Preempted
from vlm.tracking import JSONL
from vlm.training.checkpoints import find_damage, list_checkpoints, step_of

KILLS, INTERVAL = 20, 3


def last_weights(run_dir):
    return load_file(list_checkpoints(run_dir)[-1] / "weights.safetensors")


def assert_bit_equal(run_dir, other):
    ours, theirs = last_weights(run_dir), last_weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def with_dropout(config):
    """Dropout draws random numbers in every step, which must be those of the undisturbed run."""
    lora = LoRATowers(language=LoRAConfig(rank=4, dropout=0.2))
    return replace(config, model=replace(config.model, lora=lora))


def signal_at(monkeypatch, step, number):
    """This process gets a signal while a step is being logged."""
    log = JSONL.log

    def log_and_signal(self, at, values):
        log(self, at, values)
        if at == step and "loss" in values:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JSONL, "log", log_and_signal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_ends_and_the_resumed_run_is_bit_equal(tiny, one_thread, tmp_path, monkeypatch, number):
    config = with_dropout(tiny("finetune", max_steps=7, pack_length=400, global_batch_size=2, per_device_batch_size=1))
    whole = vlm.train(replace(config, run_root=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        signal_at(patched, 3, number)
        with pytest.raises(Preempted, match=rf"ended by {signal.Signals(number).name} after step 3 of 7; --resume auto goes on from there"):
            vlm.train(config)
    assert [step_of(folder) for folder in list_checkpoints(config.run_dir)] == [3]
    run_dir = vlm.train(replace(config, resume="auto"))
    assert_bit_equal(run_dir, whole)
    assert losses(run_dir) == losses(whole)


def test_lines_of_steps_that_are_taken_again_are_not_there_twice(tiny, one_thread):
    config = tiny(max_steps=5, checkpoint_every=2, keep_last=9)
    run_dir = vlm.train(config)
    before = losses(run_dir)
    for folder in list_checkpoints(run_dir)[1:]:
        (folder / "weights.safetensors").write_bytes(b"damaged")
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    vlm.train(replace(config, resume="auto"))
    assert [line["step"] for line in metrics(run_dir)] == [1, 2, 3, 4, 5]
    assert losses(run_dir) == before


def test_other_micro_batches_and_workers_go_on_with_the_same_batches(tiny, tmp_path):
    config = tiny("finetune", max_steps=6, schedule="constant", group_by_length=True)
    whole = vlm.train(replace(config, run_root=tmp_path / "whole"))
    vlm.train(replace(config, stage=replace(config.stage, max_steps=3)))
    run_dir = vlm.train(replace(config, resume="auto", stage=replace(config.stage, per_device_batch_size=2, num_workers=2)))
    assert losses(run_dir) == pytest.approx(losses(whole), abs=1e-5)


def test_damaged_checkpoints_are_passed_over_and_named(tiny, caplog):
    config = tiny(max_steps=4, checkpoint_every=1)
    run_dir = vlm.train(config)
    kept = last_weights(run_dir)
    *_, third, fourth = list_checkpoints(run_dir)
    state = next((fourth / "state").glob("*.distcp"))
    state.write_bytes(state.read_bytes()[:-1])
    weights = bytearray((third / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (third / "weights.safetensors").write_bytes(weights)
    vlm.train(replace(config, resume="auto"))
    assert f"checkpoint {fourth} is damaged (state/{state.name} has" in caplog.text
    assert f"checkpoint {third} is damaged (weights.safetensors is not what was written)" in caplog.text
    assert all(torch.equal(tensor, last_weights(run_dir)[name]) for name, tensor in kept.items())


def test_run_without_a_whole_checkpoint_is_refused(tiny):
    config = tiny(max_steps=1)
    (folder,) = list_checkpoints(vlm.train(config))
    (folder / "files.json").unlink()
    with pytest.raises(CheckpointError, match=r"None of the 1 checkpoints in .* is whole. Use --overwrite"):
        vlm.train(replace(config, resume="auto"))


def test_resume_auto_starts_a_run_that_does_not_exist_and_leaves_a_finished_one(tiny):
    config = tiny(max_steps=2, resume="auto")
    run_dir = vlm.train(config)
    stamp = (list_checkpoints(run_dir)[-1] / "files.json").stat().st_mtime_ns
    assert vlm.train(config) == run_dir
    assert (list_checkpoints(run_dir)[-1] / "files.json").stat().st_mtime_ns == stamp
    assert len(losses(run_dir)) == 2


def test_named_checkpoint_is_resumed_from(tiny, one_thread):
    config = tiny(max_steps=4, checkpoint_every=2)
    run_dir = vlm.train(config)
    before = losses(run_dir)
    vlm.train(replace(config, resume=str(run_dir / "checkpoints" / "step-000002")))
    assert losses(run_dir) == before


@pytest.mark.parametrize("name", ["elsewhere", "checkpoints/step-000009"])
def test_checkpoint_of_no_run_or_another_is_refused(tiny, name):
    config = tiny(max_steps=1)
    run_dir = vlm.train(config)
    with pytest.raises(CheckpointError, match=r"is no checkpoint of this run, whose checkpoints are in .*use --init-from"):
        vlm.train(replace(config, resume=str(run_dir / name)))


def test_other_settings_are_refused_with_both_values(tiny):
    config = tiny(max_steps=1)
    vlm.train(config)
    other = replace(config, resume="auto", stage=replace(config.stage, global_batch_size=4, per_device_batch_size=4, clip_norm=0.5))
    with pytest.raises(
        ConfigError, match=r"--stage.global-batch-size was 8, is 4; --stage.clip-norm was 1.0, is 0.5. Give the same, or start another"
    ):
        vlm.train(other)


def test_other_data_is_refused(tiny, tmp_path):
    data = write(tmp_path / "own")
    config = tiny(dataset=str(data), max_steps=1)
    run_dir = vlm.train(config)
    data.write_text(json.dumps(json.loads(data.read_text(encoding="utf-8"))[:-1]), encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"The data or its order is not what .*step-000001 was trained on.*--init-from"):
        vlm.train(replace(config, resume="auto"))
    assert losses(run_dir)


def test_longer_run_goes_on_and_says_that_the_schedule_is_another(tiny, caplog):
    config = tiny(max_steps=2)
    vlm.train(config)
    run_dir = vlm.train(replace(config, resume="auto", stage=replace(config.stage, max_steps=4)))
    assert len(losses(run_dir)) == 4
    assert "--stage.max-steps was 2 and is 4: the schedule of the learning rate is another one from here on" in caplog.text


def test_resume_and_overwrite_contradict_each_other(tiny):
    with pytest.raises(ConfigError, match="--resume goes on with a run and --overwrite deletes it"):
        tiny(resume="auto", overwrite=True)


def test_time_limit_saves_and_ends(tiny, caplog):
    config = tiny(max_steps=10_000, max_time=1e-9)
    with caplog.at_level("INFO", logger="vlm"):
        run_dir = vlm.train(config)
    assert "--stage.max-time is over after step 0 of 10000" in caplog.text
    vlm.train(replace(config, resume="auto", stage=replace(config.stage, max_time=0.5 / 3600)))
    taken = len(losses(run_dir))
    assert 0 < taken < 10_000
    assert step_of(list_checkpoints(run_dir)[-1]) == taken


def test_latest_checkpoints_and_multiples_stay(tiny):
    run_dir = vlm.train(tiny(max_steps=9, checkpoint_every=1, keep_last=2, keep_every=4))
    assert [step_of(folder) for folder in list_checkpoints(run_dir)] == [4, 8, 9]


PRELOADED = ("torch", "vlm.training.stage", "vlm.commands.pretrain", "vlm.evaluate.validation", "transformers.models.llama.modeling_llama", "peft")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_killed_at_random_moments_ends_bit_equal(tiny, tmp_path, monkeypatch):
    """SIGKILL, also in the middle of a save; after each kill every checkpoint is whole, and no more than one interval is lost."""
    config = with_dropout(tiny("finetune", max_steps=300, global_batch_size=2, per_device_batch_size=1, checkpoint_every=INTERVAL, keep_last=3))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context, chance = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(list(PRELOADED))

    def start(config):
        process = context.Process(target=run, args=(config,))
        process.start()
        return process

    undisturbed = start(replace(config, run_root=tmp_path / "whole"))
    cut_saves = 0
    for i in range(KILLS):
        process = start(replace(config, resume="auto"))
        goal = steps_taken(config.run_dir) + chance.randrange(12)
        while process.is_alive() and steps_taken(config.run_dir) <= goal:
            time.sleep(0.01)
        if i % 2:  # in the middle of a save
            while process.is_alive() and not unfinished(config.run_dir):
                pass
        else:
            time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        folders = list_checkpoints(config.run_dir)
        assert [find_damage(folder) for folder in folders] == [""] * len(folders)
        assert steps_taken(config.run_dir) - (step_of(folders[-1]) if folders else 0) <= INTERVAL
        cut_saves += unfinished(config.run_dir)
    assert cut_saves >= 3
    for process in (start(replace(config, resume="auto")), undisturbed):
        process.join()
        assert process.exitcode == 0
    whole = tmp_path / "whole" / config.run_id
    assert not unfinished(config.run_dir)
    assert_bit_equal(config.run_dir, whole)
    assert losses(config.run_dir) == losses(whole)


def unfinished(run_dir):
    """True if a checkpoint is being written, or was when the run ended."""
    return any((run_dir / "checkpoints").glob("*.tmp"))


def steps_taken(run_dir):
    """Number of the last step that was logged whole."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted")
def test_full_disk_ends_the_run_and_leaves_whole_checkpoints(tiny, tmp_path):
    """A real disk of 600 kB, filled by checkpoint after checkpoint; then room is made and the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        config = tiny(max_steps=40, checkpoint_every=1, run_root=disk)
        with pytest.raises((CheckpointError, ConfigError), match=r"(could not|cannot) be written: .*Free space,? or choose another --run-root"):
            vlm.train(config)
        folders = list_checkpoints(config.run_dir)
        assert len(folders) > 3
        assert [find_damage(folder) for folder in folders] == [""] * len(folders)
        for folder in folders[:-1]:
            shutil.rmtree(folder)
        vlm.train(replace(config, resume="auto", keep_last=2))
        assert step_of(list_checkpoints(config.run_dir)[-1]) == 40
    finally:
        subprocess.run(["umount", str(disk)], check=True)

"""Runs of several ranks: saved by one number of ranks and resumed by another; ended by a signal."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import losses

import vlm
from vlm.conf.schema import LearningRates
from vlm.conf.serialize import write_config
from vlm.training.checkpoints import find_damage, list_checkpoints, step_of

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
TRAIN_EACH = Path(__file__).with_name("train_each.py")


def test_another_number_of_ranks_goes_on_with_the_same_batches(tiny, torchrun, tmp_path):
    rates = LearningRates(connector=1e-3, language=1e-3)
    config = tiny("finetune", max_steps=6, schedule="constant", warmup_ratio=0.0, lr=rates, global_batch_size=4, per_device_batch_size=2)
    whole = vlm.train(replace(config, run_root=tmp_path / "whole"))
    half = replace(config, stage=replace(config.stage, max_steps=3))
    files = {name: tmp_path / f"{name}.json" for name in ("two", "one")}
    vlm.train(replace(half, run_root=tmp_path / "one"))
    write_config(replace(half, run_root=tmp_path / "two"), files["two"])
    write_config(replace(config, run_root=tmp_path / "one", resume="auto"), files["one"])
    torchrun(TRAIN_EACH, *files.values(), timeout=150)
    vlm.train(replace(config, run_root=tmp_path / "two", resume="auto"))
    for name in files:
        run_dir = tmp_path / name / config.run_id
        assert losses(run_dir) == pytest.approx(losses(whole), abs=1e-5), name
        assert [step_of(folder) for folder in list_checkpoints(run_dir)] == [3, 6]
        ours, theirs = (load_file(list_checkpoints(run)[-1] / "weights.safetensors") for run in (run_dir, whole))
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, atol=5e-4, rtol=0, msg=f"{name} {key}")


@pytest.mark.slow
def test_signal_to_torchrun_saves_and_ends(tiny, tmp_path, data):
    arguments = ("tiny/align", "--stage.dataset", str(data), "--device", "cpu", "--stage.max-steps", "100000", "--stage.per-device-batch-size", "4")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(ROOT / "scripts" / "pretrain.py"), *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    run_dir = tmp_path / "runs" / "tiny+align+x7"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run_dir.exists() and (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    (folder,) = list_checkpoints(run_dir)
    assert f"vlm pretrain: ended by SIGTERM after step {step_of(folder)} of 100000; --resume auto goes on from there." in said
    assert find_damage(folder) == ""
    assert len(losses(run_dir)) == step_of(folder)

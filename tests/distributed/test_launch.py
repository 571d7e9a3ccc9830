import pytest
import torch

from vlm.distributed import launch
from vlm.errors import ConfigError


def test_auto_takes_what_the_machine_has():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert launch.choose_device("auto") == expected


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_missing_device_is_refused_with_those_that_exist(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"--device {device} does not exist on this machine. Available: cpu."):
        launch.choose_device(device)


def test_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="--device gpu is not one of auto, cuda, mps, cpu"):
        launch.choose_device("gpu")


def test_another_gpu_than_the_first_is_chosen_by_the_environment():
    with pytest.raises(ConfigError, match="Set CUDA_VISIBLE_DEVICES=1 and take --device cuda"):
        launch.choose_device("cuda:1")


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = launch.launch("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 processes for 1 GPU\(s\). Lower --nproc-per-node"):
        launch.launch("cuda")


def test_mps_serves_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="--device mps serves one process"):
        launch.launch("mps")


def test_precision_follows_the_device(monkeypatch):
    monkeypatch.setattr(launch, "_cpu_has_bf16_units", lambda: True)
    assert launch.choose_precision("auto", torch.device("cpu")) == "bf16-mixed"
    monkeypatch.setattr(launch, "_cpu_has_bf16_units", lambda: False)
    assert launch.choose_precision("auto", torch.device("cpu")) == "fp32"
    assert launch.choose_precision("auto", torch.device("mps")) == "fp32"
    assert launch.choose_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "bf-16"])
def test_unknown_precision_is_refused(precision):
    with pytest.raises(ConfigError, match=rf"--precision {precision} is not one of auto, fp32, bf16-mixed, bf16"):
        launch.choose_precision(precision, torch.device("cpu"))

import os

import psutil
import pytest
import torch

from vlm.tracking import SystemMetrics, system


@pytest.fixture
def look(monkeypatch):
    """A look ten seconds after the last one."""
    now = iter(range(0, 1000, 10))
    return SystemMetrics(torch.device("cpu"), clock=lambda: float(next(now)))


def test_resident_memory_is_what_the_system_says(look):
    assert look()["system/rss_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.05)


def test_resident_memory_without_proc_comes_from_psutil(look, monkeypatch, tmp_path):
    monkeypatch.setattr(system, "STATM", tmp_path / "none")
    assert look()["system/rss_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.05)
    monkeypatch.setattr(system.importlib.util, "find_spec", lambda _: None)
    assert look().keys() == {"system/cpu_percent"}


def test_processor_time_is_a_share_of_the_time_between_looks(look):
    look()
    before = os.times()
    sum(range(3_000_000))
    after = os.times()
    worked = after.user + after.system - before.user - before.system
    assert look()["system/cpu_percent"] == pytest.approx(100 * worked / 10, rel=0.5, abs=0.3)


def test_it_looks_at_most_once_a_second():
    now = iter([0.0, 0.5, 1.2, 1.3, 2.5])
    look = SystemMetrics(torch.device("cpu"), clock=lambda: next(now))
    assert [bool(look()) for _ in range(4)] == [False, True, False, True]

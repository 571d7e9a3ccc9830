import pytest

from vlm.errors import MissingPackageError
from vlm.tracking import Trackers, base, check_trackers


class Recorder:
    def __init__(self):
        self.calls = []

    def log(self, step, metrics):
        self.calls.append(("log", step, dict(metrics)))

    def show(self, step, samples):
        self.calls.append(("show", step))

    def finish(self):
        self.calls.append("finish")


def test_trackers_are_all_told_and_closed_even_after_an_error():
    first, second = Recorder(), Recorder()
    with pytest.raises(KeyError), Trackers([first, second]) as trackers:
        trackers.log(1, {"loss": 1.0})
        trackers.show(1, [])
        raise KeyError
    assert first.calls == second.calls == [("log", 1, {"loss": 1.0}), ("show", 1), "finish"]


def test_metrics_that_belong_to_every_step_reach_every_tracker_with_training_steps_alone():
    first, second = Recorder(), Recorder()
    trackers = Trackers([first, second], also=lambda: {"system/rss_gb": 1.5})
    trackers.log(1, {"loss": 1.0})
    trackers.log(1, {"validation_loss": 2.0})
    assert first.calls == second.calls == [("log", 1, {"loss": 1.0, "system/rss_gb": 1.5}), ("log", 1, {"validation_loss": 2.0})]
    Trackers([], also=lambda: pytest.fail("asked for nobody")).log(1, {"loss": 1.0})


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_missing_package_is_refused_with_the_install_line(name, monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda _: None)
    check_trackers(["jsonl"])
    with pytest.raises(MissingPackageError, match=rf'--tracking.trackers {name} needs .*pip install "vlm\[track\]"'):
        check_trackers(["jsonl", name])

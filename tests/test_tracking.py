import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from vlm import tracking
from vlm.errors import ConfigError, MissingPackageError
from vlm.tracking import JSONL, Progress, Shown, Trackers, WandB, check_trackers


@pytest.fixture
def shown(tmp_path: Path) -> list[Shown]:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    return [Shown(tmp_path / "red.png", "color?", "red", "[bold]red"), Shown(None, "Say yes.", "Yes", "No")]


def test_jsonl_has_an_object_a_line_at_once(tmp_path, shown):
    tracker = JSONL(tmp_path / "metrics.jsonl")
    tracker.log(1, {"loss": 2.5})
    tracker.show(1, shown)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"step": 1, "loss": 2.5}
    assert lines[1]["samples"][1] == {"image": "", "question": "Say yes.", "reference": "Yes", "generated": "No"}
    tracker.finish()


def test_full_disk_is_one_line_with_the_remedy():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    tracker = JSONL(Path("/dev/full"))
    with pytest.raises(ConfigError, match=r"/dev/full cannot be written: No space left on device. Free space, or choose another --run-root"):
        tracker.log(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space"):
        tracker.finish()


def test_progress_without_a_terminal_prints_lines_with_time_left(monkeypatch, capsys, shown):
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_LINES", 0.0)
    now = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: next(now)))
    progress = Progress("run", 4)
    progress.log(1, {"loss": 1.25, "tokens_per_second": 1234.0})
    progress.log(2, {"loss": 1.0})
    progress.log(2, {"validation_loss": 3.5})
    progress.show(2, shown)
    progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "run 1/4  loss 1.250  1234 tokens/s  30 s left",
        "run 2/4  loss 1.000  20 s left",
        "  step 2  validation_loss 3.500",
        "  step 2  'color?' -> '[bold]red' (truth: 'red')",
        "  step 2  'Say yes.' -> 'No' (truth: 'Yes')",
    ]


def test_progress_prints_seldom_and_always_the_last_step(monkeypatch, capsys):
    now = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: next(now)))
    progress = Progress("run", 3)
    for step in (1, 2, 3):
        progress.log(step, {"loss": 1.0})
    progress.finish()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/3", "3/3"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress("run", 2)
    progress.log(1, {"loss": 1.25})
    progress.log(2, {"loss": 1.0})
    progress.finish()
    err = capsys.readouterr().err
    assert "2/2" in err and "left" in err and "loss 1.000" in err


def test_trackers_are_all_told_and_closed_even_after_an_error():
    class Recorder:
        def __init__(self):
            self.calls = []

        def log(self, step, metrics):
            self.calls.append(("log", step, dict(metrics)))

        def show(self, step, samples):
            self.calls.append(("show", step))

        def finish(self):
            self.calls.append("finish")

    first, second = Recorder(), Recorder()
    with pytest.raises(KeyError), Trackers([first, second]) as trackers:
        trackers.log(1, {"loss": 1.0})
        trackers.show(1, [])
        raise KeyError
    assert first.calls == second.calls == [("log", 1, {"loss": 1.0}), ("show", 1), "finish"]


def test_missing_wandb_is_refused_with_the_install_line(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    check_trackers(["jsonl"])
    with pytest.raises(MissingPackageError, match=r'pip install "vlm\[track\]"'):
        check_trackers(["jsonl", "wandb"])


def test_wandb_that_cannot_start_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key\nconfigured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"Weights & Biases did not start: No API key configured. Run `wandb login`, or set WANDB_MODE=offline."):
        WandB(run_id="x", run_dir=tmp_path, config={}, project="vlm", entity=None)


def test_wandb_offline_leaves_a_run_with_the_pictures_as_a_table(monkeypatch, tmp_path, shown):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    tracker = WandB(run_id="tiny+align+x7", run_dir=tmp_path, config={"seed": 7}, project="vlm", entity=None)
    tracker.log(1, {"loss": 2.0})
    tracker.show(1, shown)
    tracker.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    (table,) = (run / "files" / "media" / "table").rglob("*.json")
    values = json.loads(table.read_text(encoding="utf-8"))
    assert values["columns"] == ["image", "question", "reference", "generated"]
    assert [row[1:] for row in values["data"]] == [["color?", "red", "[bold]red"], ["Say yes.", "Yes", "No"]]
    assert len(list((run / "files" / "media" / "images").rglob("*.png"))) == 1
    assert "wandb" in sys.modules

import json
from pathlib import Path

import pytest

from vlm.errors import ConfigError
from vlm.tracking import JSONL


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
    tracker.finish()  # it was said once


def test_resumed_file_loses_later_steps_and_a_last_line_that_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 2, "samples": []}\n{"step": 3, "loss": 1.0}\n{"step": 2, "lo', encoding="utf-8"
    )
    tracker = JSONL(path, after_step=2)
    tracker.log(3, {"loss": 1.5})
    tracker.finish()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "samples": []}, {"step": 3, "loss": 1.5}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]

import json
import sys
import time
from pathlib import Path

import pytest

from vlm.errors import ConfigError
from vlm.tracking import WandB

BLOCK, HEADER = 32_768, 7  # of LevelDB's log format, which W&B's files have: checksum, length and type of each piece


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Weights & Biases without a network, and everything it writes in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    return lambda **changed: WandB(
        **({"run_id": "tiny+align+x7", "run_dir": tmp_path, "config": {"seed": 7}, "project": "vlm", "entity": None} | changed)
    )


def records(path: Path):
    """The records of a `.wandb` file, by the published format alone."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), HEADER, b""  # the file's own header is as long as a piece's
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(path: Path):
    """What was logged, without what W&B adds."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            yield {key: value for key, value in items.items() if not key.startswith("_")}


def wait_for_lines(files, count):
    """Lines of the histories; the process behind W&B may close a file a moment after `finish` has returned."""
    until = time.monotonic() + 15
    while len(lines := [line for path in files for line in history(path)]) < count and time.monotonic() < until:
        time.sleep(0.1)
    return lines


def test_wandb_that_cannot_start_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key\nconfigured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"Weights & Biases did not start: No API key configured. Run `wandb login`, or set WANDB_MODE=offline."):
        WandB(run_id="x", run_dir=tmp_path, config={}, project="vlm", entity=None)
    assert list(tmp_path.iterdir()) == []


def test_wandb_offline_leaves_a_run_with_the_pictures_as_a_table(offline, tmp_path, shown):
    tracker = offline()
    tracker.log(1, {"loss": 2.0})
    tracker.show(1, shown)
    tracker.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (table,) = (run / "files" / "media" / "table").rglob("*.json")
    values = json.loads(table.read_text(encoding="utf-8"))
    assert values["columns"] == ["image", "question", "reference", "generated"]
    assert [row[1:] for row in values["data"]] == [["color?", "red", "[bold]red"], ["Say yes.", "Yes", "No"]]
    assert len(list((run / "files" / "media" / "images").rglob("*.png"))) == 1
    assert "wandb" in sys.modules


def test_resumed_run_goes_on_under_its_id_and_logs_the_steps_it_takes_again(offline, tmp_path):
    tracker = offline()
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step), "lr/connector": 0.1})
    tracker.finish()
    run_id = (tmp_path / "wandb_id").read_text(encoding="utf-8").strip()
    resumed = offline()
    resumed.log(2, {"loss": 20.0})
    resumed.finish()
    assert (tmp_path / "wandb_id").read_text(encoding="utf-8").strip() == run_id
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert {path.name for path in files} == {f"run-{run_id}.wandb"}
    lines = wait_for_lines(files, 4)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)]
    assert lines[0]["lr/connector"] == 0.1
    names = {record.run.display_name for path in files for record in records(path) if record.WhichOneof("record_type") == "run"}
    assert names == {"tiny+align+x7"}


def test_run_folder_that_was_deleted_gets_a_new_id(offline, tmp_path):
    ids = []
    for _ in range(2):
        offline().finish()
        ids.append((tmp_path / "wandb_id").read_text(encoding="utf-8"))
        (tmp_path / "wandb_id").unlink()
    assert ids[0] != ids[1]

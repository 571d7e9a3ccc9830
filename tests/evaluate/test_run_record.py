import json

import pytest

from vlm.errors import ConfigError
from vlm.evaluate.run_record import find_run, read_run

CONFIG = {"format_version": 1, "model": {"vision": "v", "lora": {"language": {"rank": 4}}}, "stage": {"name": "align", "max_steps": 3}, "seed": 7}


def make(folder, metrics=None, config=CONFIG):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    return folder


def test_settings_metrics_and_looks_are_read(tmp_path):
    sample = {"image": "a.png", "question": "?", "reference": "yes", "generated": "no"}
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "validation_loss": 3.0}, {"step": 2, "samples": [sample]}]
    run = read_run(make(tmp_path / "a+b+x1", "".join(json.dumps(line) + "\n" for line in lines)))
    assert run.settings == {"model.vision": "v", "model.lora.language.rank": 4, "stage.name": "align", "stage.max_steps": 3, "seed": 7}
    assert run.series("loss") == [(1, 2.0), (2, 1.5)] and run.keys == ["loss", "validation_loss"] and run.last_step == 2
    assert str(run.looks[2][0].image) == "a.png" and run.looks[2][0].generated == "no"
    assert run.gaps == []


def test_killed_run_is_read_up_to_the_line_that_was_cut(tmp_path):
    run = read_run(make(tmp_path / "r", '{"step": 1, "loss": 2.0}\nnonsense\n{"step": 2, "loss": NaN, "grad_norm": 1.0}\n{"step": 3, "lo'))
    assert run.series("loss") == [(1, 2.0)] and run.series("grad_norm") == [(2, 1.0)]
    assert run.gaps[:2] == ["Line 2 of metrics.jsonl cannot be read.", "The last line of metrics.jsonl was cut: the run ended while it was written."]


def test_run_without_metrics_says_so(tmp_path):
    run = read_run(make(tmp_path / "r"))
    assert run.metrics == [] and run.last_step == 0
    assert run.gaps[0] == "There is no metrics.jsonl: --tracking.trackers jsonl writes it."
    assert run.gaps[1] == "No step has been logged yet, so there are no curves."


def test_incidents_are_counted(tmp_path):
    folder = make(tmp_path / "r", '{"step": 1, "loss": 2.0}\n')
    (folder / "incidents.jsonl").write_text(
        '{"step": 1, "kind": "spike"}\n{"step": 4, "kind": "nan"}\n{"step": 5, "kind": "nan"}\n', encoding="utf-8"
    )
    assert "Steps that went wrong: 1 spike, 2 nan; see incidents.jsonl." in read_run(folder).gaps


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 1}'])
def test_config_of_something_else_is_refused(tmp_path, text):
    folder = make(tmp_path / "r")
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="Name the folder of a run"):
        read_run(folder)


def test_run_is_found_by_path_name_or_unique_prefix(tmp_path):
    run = make(tmp_path / "mine+align+x7")
    make(tmp_path / "mine+finetune+x7")
    (tmp_path / "demo").mkdir()
    assert (
        find_run(run) == find_run("mine+align+x7", run_root=tmp_path) == find_run("mine+a", run_root=tmp_path) == find_run(tmp_path / "mine+a") == run
    )
    with pytest.raises(ConfigError, match=r"2 runs begin with 'mine' in .*: mine\+align\+x7, mine\+finetune\+x7. Give more of the name"):
        find_run("mine", run_root=tmp_path)
    with pytest.raises(ConfigError, match=r"demo is no run folder: it has no config.json. Runs in .*: mine\+align"):
        find_run(tmp_path / "demo")
    with pytest.raises(ConfigError, match="There is no run yours, and none that begins with that name"):
        find_run("yours", run_root=tmp_path)

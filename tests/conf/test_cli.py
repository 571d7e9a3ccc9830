import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from vlm.conf.cli import parse_train
from vlm.conf.idle import idle_settings
from vlm.conf.presets import PRESETS
from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import write_config
from vlm.errors import ConfigError, UnknownNameError


def parse(*argv: str) -> TrainConfig:
    return parse_train(argv, prog="vlm pretrain")


@pytest.mark.parametrize("name", list(PRESETS))
def test_preset_alone_is_the_preset(name):
    assert parse(name) == PRESETS[name]


def test_overrides_change_what_they_name_and_nothing_else():
    config = parse(
        "phi2-siglip/finetune", "--model.lora.language.rank", "64", "--stage.lr.vision", "1e-6", "--seed", "3", "--tracking.trackers", "wandb"
    )
    assert config.model.lora.language.rank == 64
    assert config.model.lora.language.alpha == 256
    assert config.stage.lr.vision == 1e-6
    assert config.stage.lr.connector == 2e-5
    assert config.tracking.trackers == ("wandb",)
    assert config.run_id == "phi2-siglip+finetune+x3"


@pytest.mark.parametrize("preset", ["ape-demo/align", "prism-clip+7b/finetune"])
def test_steps_take_the_place_of_the_presets_epochs(preset):
    assert parse(preset).stage.epochs > 1
    config = parse(preset, "--stage.max-steps", "5")
    assert (config.stage.max_steps, config.stage.epochs) == (5, 1.0) and not idle_settings(config)
    typed = parse(preset, "--stage.max-steps", "5", "--stage.epochs", "7")
    assert typed.stage.epochs == 7 and "--stage.epochs 7 has no effect" in idle_settings(typed)[0]


def test_none_freezes_a_part():
    assert parse("phi2-siglip/finetune", "--stage.lr.language", "None").stage.lr.language is None


def test_recomposed_preset_loses_the_presets_name():
    config = parse("tiny/align", "--model.language", "tiny-qwen2", "--model.connector", "linear")
    assert config.run_id == "tiny-siglip-linear-tiny-qwen2+align+x7"
    assert parse("tiny/align", "--model.language", "tiny-qwen2", "--model.name", "mine").run_id == "mine+align+x7"
    assert parse("tiny/align", "--seed", "8").run_id == "tiny+align+x8"


def test_stored_config_is_a_start_like_a_preset(tmp_path):
    path = tmp_path / "config.json"
    write_config(PRESETS["tiny/finetune"], path)
    assert parse(str(path)) == PRESETS["tiny/finetune"]
    assert parse(str(path), "--seed", "9").seed == 9


def test_other_name_of_a_preset_is_the_preset_and_names_no_folder():
    assert parse("one-stage+7b/finetune") == PRESETS["one-stage-7b/finetune"]
    assert parse("one-stage+7b/finetune", "--seed", "8").run_id == "one-stage-7b+finetune+x8"


def test_typo_in_a_preset_gets_the_nearest_names():
    with pytest.raises(UnknownNameError, match=r"No preset named 'tiny/algin'. Did you mean 'tiny/align'"):
        parse("tiny/algin")


@pytest.mark.parametrize("argv", [[], ["--seed", "3"]])
def test_without_a_preset_the_presets_are_named(argv):
    with pytest.raises(ConfigError, match=r"Say which run: `vlm pretrain PRESET \[overrides\]`. Presets: demo/align"):
        parse(*argv)


def test_typo_in_a_flag_gets_the_nearest_flags_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("tiny/align", "--stage.lr.conector", "1e-3")
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "--stage.lr.connector" in said.err + said.out


def test_value_out_of_range_is_refused_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("tiny/align", "--stage.lr.connector", "-1")
    assert stop.value.code == 2
    said = " ".join(re.sub(r"[│|╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert "--stage.lr.connector is -1.0; a learning rate is positive" in said


def test_help_without_a_preset_names_the_presets(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    said += " ".join(f"{model}/{stage}" for model, stages in re.findall(r"(\S+)/\{(\S+)\}", said) for stage in stages.split(","))
    assert [name for name in PRESETS if name not in said] == []


@pytest.fixture(scope="module")
def help_text() -> str:
    import contextlib
    import io
    import os

    out = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "200"
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        parse("tiny/finetune", "--help")
    assert stop.value.code == 0
    os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def settings(kind: type = TrainConfig, prefix: str = "") -> list[tuple[type, str, str]]:
    found = []
    for field in fields(kind):
        name = f"{prefix}{field.name}".replace("_", "-")
        declares = next(owner for owner in kind.__mro__ if field.name in vars(owner).get("__annotations__", {}))
        found += settings(field.type, f"{name}.") if is_dataclass(field.type) else [(declares, field.name, name)]
    return found


def test_help_is_grouped(help_text):
    for group in (
        "model options",
        "model.lora.language options",
        "model.lora.vision options",
        "stage options",
        "stage.lr options",
        "tracking options",
    ):
        assert group in help_text


@pytest.mark.parametrize(("kind", "field", "flag"), settings(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_flag_is_in_the_help_with_a_sentence(help_text, kind, field, flag):
    source = Path(__file__).parents[2].joinpath("vlm/conf/schema.py").read_text(encoding="utf-8")
    body = source[re.search(rf"class {kind.__name__}\b[^\n]*:\n", source).start() :]
    sentence = re.search(rf'^    {field}: [^\n]*\n    """(.+?)"""', body, re.MULTILINE)
    assert sentence and sentence[1].endswith("."), f"{kind.__name__}.{field} has no sentence"
    assert f"--{flag}" in help_text
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", help_text).split())
    assert " ".join(sentence[1].split()[:3]) in said

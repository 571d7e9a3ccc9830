import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlm.conf.presets import PRESETS
from vlm.conf.schema import LearningRates, TrainConfig
from vlm.conf.serialize import read_config, to_dict, write_config
from vlm.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_survives_the_file(name, tmp_path):
    write_config(PRESETS[name], tmp_path / "config.json")
    assert read_config(tmp_path / "config.json", TrainConfig) == PRESETS[name]


def test_every_kind_of_value_survives_the_file(tmp_path):
    config = PRESETS["tiny/finetune"]
    stage = replace(config.stage, lr=LearningRates(vision=1e-6, connector=2.0), betas=(0.9, 0.95), max_steps=None, clip_norm=None)
    config = replace(config, stage=stage, init_from=Path("runs/x"), checkpoint_every=5)
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json", TrainConfig) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def stored(tmp_path: Path, **changed) -> Path:
    path = tmp_path / "config.json"
    values = {"format_version": 1} | to_dict(PRESETS["tiny/align"]) | changed
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_unknown_setting_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UnknownNameError, match=r"No setting in .*config.json named 'sead'. Did you mean 'seed'"):
        read_config(stored(tmp_path, sead=3), TrainConfig)


def test_unknown_setting_further_down_says_where(tmp_path):
    stage = to_dict(PRESETS["tiny/align"].stage) | {"lr": {"conector": 1e-3}}
    with pytest.raises(UnknownNameError, match=r"under 'stage.lr' named 'conector'. Did you mean 'connector'"):
        read_config(stored(tmp_path, stage=stage), TrainConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list; expected an object"),
        ('{"format_version": 2}', r"has format_version 2; this vlm reads up to 1. Upgrade vlm."),
        ('{"format_version": "new"}', "has format_version 'new'"),
        ("{}", "model"),
    ],
)
def test_file_that_is_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_config(path, TrainConfig)


@pytest.mark.parametrize(("changed", "where"), [({"seed": "many"}, "seed"), ({"precision": "fp8"}, "precision"), ({"model": 3}, "model")])
def test_value_of_the_wrong_kind_is_refused_and_named(tmp_path, changed, where):
    with pytest.raises(ConfigError) as caught:
        read_config(stored(tmp_path, **changed), TrainConfig)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_value_out_of_range_is_refused(tmp_path):
    stage = to_dict(PRESETS["tiny/align"].stage) | {"lr": {"connector": -1.0}}
    with pytest.raises(ConfigError, match=r"--stage.lr.connector is -1.0; a learning rate is positive"):
        read_config(stored(tmp_path, stage=stage), TrainConfig)


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_missing_file_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"There is no config file|cannot be read"):
        read_config(tmp_path / name, TrainConfig)

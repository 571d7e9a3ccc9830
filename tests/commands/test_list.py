import json

import pytest

from vlm.__main__ import main
from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.conf.presets import PRESETS
from vlm.connectors import CONNECTORS
from vlm.data.datasets import DATASETS

KINDS = {"vision": VISION, "language": LANGUAGE, "connectors": CONNECTORS, "datasets": DATASETS, "presets": PRESETS}


@pytest.mark.parametrize("kind", KINDS)
def test_table_names_every_entry(kind, capsys):
    assert main(["list", kind]) == 0
    said = capsys.readouterr().out
    assert [name for name in KINDS[kind] if name not in said] == []


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("vision", "fused:<a>+<b>, timm:<name>"),
        ("language", "hf:<id or folder>"),
        ("connectors", "mlp:<width>x<width>@<activation>"),
    ],
)
def test_names_that_are_open_stand_below_the_table(kind, forms, capsys):
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].strip() == f"also by name: {forms}"


def test_json_has_every_kind_and_entry(capsys):
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {*KINDS, "templates"} <= listed.keys()
    for kind, registry in KINDS.items():
        assert {row["name"] for row in listed[kind]} == set(registry)
    assert {"ran_with_real_weights", "license", "source", "parameters"} <= listed["vision"][0].keys()


def test_unknown_kind_gets_the_nearest(capsys):
    assert main(["list", "conectors"]) == 2
    assert "Did you mean 'connectors'" in capsys.readouterr().err

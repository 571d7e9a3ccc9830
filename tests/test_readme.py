"""What the README says is so: component tables, the example of an own part, commands that exist."""

import re
from pathlib import Path

import torch

from vlm.__main__ import COMMANDS
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.presets import PRESETS
from vlm.models.catalog import markdown

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_component_tables_are_those_of_the_registries():
    shown = README.split("<!-- components: vlm list --markdown -->\n")[1].split("<!-- end of components -->")[0]
    assert shown == markdown(), "regenerate the tables between the markers with `vlm list --markdown`"


def test_own_connector_of_the_readme_works():
    (code,) = [block for block in PYTHON if "class MeanPool" in block]
    names: dict = {}
    exec(code, names)
    spec = names["SPECS"]["mean-pool"]
    assert spec.build(4, 6)(torch.randn(2, 9, 4)).shape == (2, spec.num_tokens(9), 6)


def test_python_examples_are_valid_python():
    for block in PYTHON:
        compile(block, "README.md", "exec")


def test_commands_and_presets_of_the_readme_exist():
    assert set(re.findall(r"^vlm ([a-z]+)", README, re.MULTILINE)) <= set(COMMANDS)
    assert set(re.findall(r"(?:pretrain|pretrain\.py) ([\w.-]+/\w+)(?= |\n|$)", README)) <= {*PRESETS, *CONTRASTIVE_PRESETS}

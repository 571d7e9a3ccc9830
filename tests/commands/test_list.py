import json
import re

import pytest
from rich.console import Console

from vlm.__main__ import main
from vlm.backbones.image import IMAGE
from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.commands import terminal
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.presets import PRESETS
from vlm.connectors import CONNECTORS
from vlm.data.datasets import DATASETS
from vlm.models.catalog import list_components

KINDS = {
    "vision": VISION,
    "language": LANGUAGE,
    "image": IMAGE,
    "connectors": CONNECTORS,
    "datasets": DATASETS,
    "presets": {**PRESETS, **CONTRASTIVE_PRESETS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_table_names_every_entry(kind, capsys):
    assert main(["list", kind]) == 0
    said = capsys.readouterr().out
    said += " ".join(written_out(said))
    assert [name for name in KINDS[kind] if name not in said] == []


def written_out(said: str) -> list[str]:
    """Presets of rows like `tiny/{align,finetune}`."""
    return [f"{model}/{stage}" for model, stages in re.findall(r"(\S+)/\{(\S+)\}", said) for stage in stages.split(",")]


def test_presets_are_listed_by_model_below_their_source(capsys):
    assert main(["list", "presets"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 100
    assert re.search(r"\n\nLLaVA 1.5 \(Liu et al. 2023.*\nllava-1.5-7b/\{align,finetune\}  +clip-l14-336 +mlp2x-gelu +vicuna-1.5-7b +pad ", said)
    assert re.search(r"\ntrain-1.25-epochs-7b/finetune .* 6,500 steps +connector, language\n", said)
    assert re.search(r"\nphi2-siglip-b16/\{align,finetune\} .* llava-lvis4v-lrv +1 +connector, rank-8 adapter\n", said)
    assert re.search(
        r"\nape-demo/align +efficientnet-lite0-128-image +all-minilm-l6-v2-text +ape of image, linear of text +twemoji +20 +all-minilm", said
    )
    assert re.search(r"\nfull-ft-one-stage-7b/finetune .* vision, connector, language\n", said)


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("vision", "fused:<a>+<b>, hf:<id or folder>, timm:<name>"),
        ("language", "hf:<id or folder>"),
        ("image", "fused:<a>+<b>, open-clip:<model>:<weights>-image"),
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
    (one_stage,) = [row for row in listed["presets"] if row["name"] == "one-stage-7b/finetune"]
    assert one_stage["aliases"] == ["one-stage+7b/finetune"]
    assert {"ran_with_real_weights", "license", "source", "parameters"} <= listed["vision"][0].keys()


def test_parts_without_published_weights_have_random_ones():
    sources = {
        kind: [row["source"] for row in rows if row["name"].startswith("tiny-")] for kind, rows in list_components().items() if "source" in rows[0]
    }
    assert {kind: set(found) for kind, found in sources.items()} == {kind: {"random"} for kind in ("vision", "language", "image", "text")}


def test_unknown_kind_gets_the_nearest(capsys):
    assert main(["list", "conectors"]) == 2
    assert "Did you mean 'connectors'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vision", "language", "image", "text"])
def test_narrow_terminal_gets_fewer_columns_and_no_folded_row(kind, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "console", lambda: Console(width=80, highlight=False))
    assert main(["list", kind]) == 0
    said = capsys.readouterr().out
    entries = list_components(kind)[kind]
    lines = [line.split() for line in said.splitlines()]
    first = next(i for i, words in enumerate(lines) if words[:1] == [entries[0]["name"]])
    for words, entry in zip(lines[first : first + len(entries)], entries, strict=True):  # a line for each entry, one below the other
        assert words[0] == entry["name"] and f"{entry['parameters']:,}" in words
    assert "left out, as the terminal is narrow: license, source" in said and "--json has them" in said

"""What README and the pages in docs/ say is so: component tables, the example of an own part, commands with their flags, presets, links."""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch
import tyro

from vlm.__main__ import COMMANDS, main
from vlm.conf.cli import find_preset
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.presets import PRESETS
from vlm.models.catalog import markdown

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXTS = [*(ROOT / page for page in PAGES), ROOT / "CONTRIBUTING.md", ROOT / "runs" / "README.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
STORED_CONFIG = re.compile(r"^runs/([^+]+)\+([^+]+)\+x\d+/config\.json$")  # of a run of a preset, which stands for it: there is no run here
MOST_LINES = 350  # of README: what a newcomer does not need in the first minutes stands on a page

each_page = pytest.mark.parametrize("page", PAGES)
each_text = pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= MOST_LINES


def test_component_tables_are_those_of_the_registries():
    shown = PAGES["docs/components.md"].split("<!-- components: vlm list --markdown -->\n")[1].split("<!-- end of components -->")[0]
    assert shown == markdown(), "regenerate the tables between the markers with `vlm list --markdown`"


def test_own_connector_of_the_readme_works():
    (code,) = [block for block in blocks("README.md", "python") if "class MeanPool" in block]
    names: dict = {}
    exec(code, names)
    spec = names["SPECS"]["mean-pool"]
    assert spec.build(4, 6)(torch.randn(2, 9, 4)).shape == (2, spec.num_tokens(9), 6)


@each_page
def test_python_examples_are_valid_python(page: str):
    for block in blocks(page, "python"):
        compile(block, page, "exec")


@each_page
def test_commands_and_presets_exist(page: str):
    assert set(re.findall(r"^vlm ([a-z]+)", PAGES[page], re.MULTILINE)) <= set(COMMANDS)
    assert set(re.findall(r"(?:pretrain|pretrain\.py) ([\w.-]+/\w+)(?= |\n|$)", PAGES[page])) <= {*PRESETS, *CONTRASTIVE_PRESETS}


def test_presets_in_the_recipes_of_the_readme_exist():
    named = re.findall(r"^\| `([\w.+-]+)/([\w{},]+)`", PAGES["README.md"], re.MULTILINE)
    assert len(named) > 5
    for model, stages in named:
        for stage in stages.strip("{}").split(","):
            assert find_preset(f"{model}/{stage}")


def test_quick_start_prepares_what_it_reads():
    (block,) = [block for block in blocks("README.md", "sh") if "for set in" in block]
    prepared = set(re.findall(r"for set in ([\w -]+);", block)[0].split())
    stages = [find_preset(name).stage for name in re.findall(r"vlm pretrain (\S+)", block)]
    wanted = {data.partition("@")[0] for stage in stages for data in (stage.dataset, stage.validation)}
    assert wanted == prepared >= set(re.findall(r"data/([\w-]+)/", PAGES["README.md"].split("## Where to read on")[0]))


class Parsed(Exception):
    """Raised in the place of what a command does with its arguments."""


def commands(page: str) -> Iterator[list[str]]:
    """The vlm commands in the shell blocks of a page, as lists of arguments: behind `vlm`, `torchrun ... -m vlm` and `scripts/pretrain.py`."""
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_operator, group in groupby(lexer, key=lambda word: word != "" and set(word) <= set("();<>|&")):
            words = list(group)
            if is_operator or words[0] == "cd":
                continue
            for place, word in enumerate(words):
                if word == "vlm" or re.fullmatch(r"scripts/\w+\.py", word):
                    yield ([] if word == "vlm" else [Path(word).stem]) + words[place + 1 :]
                    break


@each_page
def test_arguments_are_understood(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = tyro.cli

    def only_parse(*arguments, **options):
        real(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", only_parse)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("csv_path: pairs.csv\n", encoding="utf-8")
    for arguments in commands(page):
        try:
            main([STORED_CONFIG.sub(r"\1/\2", word) for word in arguments])
        except Parsed:
            continue
        except SystemExit:
            pytest.fail(f"vlm {shlex.join(arguments)} is not understood")
        pytest.fail(f"vlm {shlex.join(arguments)} ends before its arguments are parsed")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_text
def test_links_lead_somewhere(text: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (text.parent / name).resolve() if name else text
        assert target.exists() and target.is_relative_to(ROOT), f"{text.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{text.name} links to {link}, where no heading is called so"


def test_anchors_are_those_of_github():
    assert anchors("# Ask, serve, measure\n```\n# no heading\n```\n## What it is `vlm score`?\n") == {"ask-serve-measure", "what-it-is-vlm-score"}


def test_readme_leads_to_every_page():
    assert set(re.findall(r"\((docs/\w[\w-]*\.md)", PAGES["README.md"])) == set(PAGES) - {"README.md"}

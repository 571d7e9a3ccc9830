"""Rules of the code base that no linter knows: sizes, headings, mirrored tests, light imports, a complete file tree in docs/file-tree.md.

The layers are import-linter's, style and banned imports ruff's; both run in `make check`.
"""

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm.data.sample import Dropped, Sample

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "vlm").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
SOURCES = [*PACKAGE, *sorted((ROOT / "scripts").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py")), *TESTS]

MAX_FUNCTION_LINES = 60
MAX_STARTUP_SECONDS = 0.3
HEAVY = ("torch", "transformers", "accelerate", "peft", "timm", "datasets", "open_clip", "wandb", "matplotlib")
MAY_PRINT = ("vlm/__main__.py", "vlm/commands/", "vlm/conf/cli.py")
TEST_FOLDERS_OF_THEIR_OWN = {"parity", "distributed", "end_to_end"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_no_function_is_longer_than_sixty_lines():
    long = [
        f"{relative(path)}:{node.lineno} {node.name} has {length} lines"
        for path in PACKAGE
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_every_file_opens_with_what_it_is():
    silent = [relative(path) for path in PACKAGE if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_annotations_stay_visible_to_the_shape_checker():
    blind = [relative(path) for path in SOURCES for node in nodes(path) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert not blind, f"from __future__ import: {', '.join(blind)}"


def test_only_commands_print():
    prints = [
        f"{relative(path)}:{node.lineno}"
        for path in PACKAGE
        if not relative(path).startswith(MAY_PRINT)
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not prints, f"print() in {', '.join(prints)}"


def test_test_files_mirror_the_package():
    strangers = [relative(path) for path in TESTS if not mirrors_something(path.relative_to(ROOT / "tests"))]
    assert not strangers, f"no module or folder of that name in vlm/: {', '.join(strangers)}"


def mirrors_something(test: Path) -> bool:
    """tests/data/test_chat.py stands for vlm/data/chat.py or vlm/data/chat/, tests/data/test_data.py for vlm/data/; tests of all of vlm lie at the top."""
    if len(test.parts) == 1 or test.parts[0] in TEST_FOLDERS_OF_THEIR_OWN:
        return True
    folder, subject = ROOT / "vlm" / test.parent, test.stem.removeprefix("test_")
    return folder.is_dir() and (subject == folder.name or (folder / subject).is_dir() or (folder / f"{subject}.py").is_file())


IMPORT = "import vlm"
HELP = """
import runpy
sys.argv = ["vlm", "--help"]
try:
    runpy.run_module("vlm", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
"""
PRESETS = "from vlm.conf.presets import PRESETS; assert [PRESETS[name] for name in PRESETS]"
DATASETS = "from vlm.data.datasets import DATASETS; assert [DATASETS[name] for name in DATASETS]"


@pytest.mark.parametrize("code", [IMPORT, HELP, PRESETS, DATASETS], ids=["import vlm", "vlm --help", "presets", "datasets"])
def test_light_entry_loads_no_heavy_library(code: str):
    report = f"import sys\n{code}\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("arguments", [["-c", IMPORT], ["-m", "vlm", "--help"]], ids=["import vlm", "vlm --help"])
def test_light_entry_takes_less_than_three_tenths_of_a_second(arguments: list[str]):
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True, timeout=60)
        best = min(best, time.perf_counter() - start)
    assert best < MAX_STARTUP_SECONDS


def test_file_tree_has_a_line_for_every_file():
    described = described_files((ROOT / "docs" / "file-tree.md").read_text(encoding="utf-8"))
    files = {relative(path) for path in (ROOT / "vlm").rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name != "__init__.py"}
    missing, gone = sorted(files - described.keys()), sorted(described.keys() - files)
    mute = sorted(path for path, words in described.items() if not words)
    assert not (missing or gone or mute), f"docs/file-tree.md lacks {missing}, describes what is not there: {gone}, says nothing about {mute}"


def described_files(page: str) -> dict[str, str]:
    """Files of the package in the page's tree, with what is said of each: the lines of the code block with `vlm/`, nested by indentation.

    An `__init__.py` has no line: its folder's line stands for it.
    """
    block = re.search(r"^```\w*\n((?:(?!```).*\n)*?[^\w\n]*vlm/(?:.*\n)*?)```", page, re.MULTILINE)
    described: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in block[1].splitlines() if block else []:
        if not (match := re.match(r"([\s│├└─|+`-]*)([\w./]+)\s*(.*)", line)):
            continue
        indent, name, words = len(match[1]), match[2], match[3]
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        elif path.startswith("vlm/") and not name.endswith("__init__.py"):
            described[path] = words
    return described


def test_file_tree_is_read_by_indentation():
    tree = "text\n```\nvlm/            the package\n  types.py      words\n  conf/         settings\n    cli.py      flags\n  errors.py\ntests/\n  a.py  x\n```\n"
    assert described_files(tree) == {"vlm/types.py": "words", "vlm/conf/cli.py": "flags", "vlm/errors.py": ""}


EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0])
def test_example_of_contributing_runs(example: str):
    names: dict[str, object] = {}
    exec(example, names)
    assert names.get("SPECS") or names.get("YOURS")


def test_dataset_example_of_contributing_opens_its_source():
    (example,) = [example for example in EXAMPLES if "DatasetSpec(" in example]
    names: dict[str, Any] = {}
    exec(example, names)
    spec = names["SPECS"]["yours"]
    source = spec.open(spec.options, {"yours.zip": Path("downloads")})
    assert [type(row) for row in source.rows(spec.splits[0])] == [Sample, Dropped]
    assert source.locate(Path("1.png")) == Path("downloads/1.png")


def test_contributing_shows_how_to_add_each_kind_of_part():
    assert len(EXAMPLES) == 7

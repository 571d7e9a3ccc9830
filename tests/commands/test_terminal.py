import io
from collections.abc import Callable

import pytest
from rich.console import Console

from vlm.commands import terminal
from vlm.evaluate.report import Table

MODELS = ("runs/noisy-captions+align+x7", "runs/noisy-captions-kept+align+x7")
COLUMNS = ("model", "caption to picture R@1", "picture to caption R@1")
ROWS = [(model, "15.5 (10.1 to 22.5)", "14.7 (9.3 to 20.9)") for model in MODELS]


@pytest.mark.parametrize(
    "show",
    [lambda out: terminal.show_table("recalls", COLUMNS, ROWS), lambda out: out.print(Table("recalls", COLUMNS, ROWS).for_terminal())],
    ids=["show_table", "Table"],
)
def test_narrow_terminal_folds_the_names_of_models_and_cuts_none(show: Callable[[Console], None], monkeypatch: pytest.MonkeyPatch):
    out = Console(file=io.StringIO(), width=50, highlight=False)
    monkeypatch.setattr(terminal, "console", lambda: out)
    show(out)
    said = out.file.getvalue()
    first = "".join(line.split("  ")[0].strip() for line in said.splitlines())
    assert "…" not in said
    assert all(model in first for model in MODELS)


def test_table_of_many_columns_is_turned_where_it_fits_only_then(monkeypatch: pytest.MonkeyPatch):
    columns, row = ("prediction", *(f"metric {i}" for i in range(8))), ("runs/ape-demo+align+x7, style 1", *(f"0.{i}" for i in range(8)))
    lines = {}
    for width in (80, 200):
        out = Console(file=io.StringIO(), width=width, highlight=False)
        monkeypatch.setattr(terminal, "console", lambda out=out: out)
        terminal.show_table("means", columns, [row])
        lines[width] = [line.split() for line in out.file.getvalue().splitlines() if line.strip()]
    assert lines[80][1][0] == "prediction" and lines[80][1][1:] == row[0].split()
    assert lines[80][3] == ["metric", "0", "0.0"] and lines[80][-1] == ["metric", "7", "0.7"]
    assert lines[200][-1] == [*row[0].split(), *row[1:]]


def test_words_stand_at_the_left_of_their_column_and_numbers_at_the_right(monkeypatch: pytest.MonkeyPatch):
    out = Console(file=io.StringIO(), width=80, highlight=False)
    monkeypatch.setattr(terminal, "console", lambda: out)
    terminal.show_table(
        "neighbors", ("rank", "cos", "image"), [("1", "0.9", "a.jpg"), ("2", "-0.25", "0001.jpg"), ("3", "\N{EN DASH}", "[green]long name.jpg[/]")]
    )
    assert [line.strip() for line in out.file.getvalue().splitlines()[-4:-1]] == [
        "1        0.9   a.jpg",
        "2      -0.25   0001.jpg",
        "3          \N{EN DASH}   long name.jpg",
    ]

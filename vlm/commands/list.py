"""`vlm list [KIND] [--json]`: every name that a composition, a dataset or a run can use."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from vlm.conf.cli import Positional, parse

if TYPE_CHECKING:
    from rich.table import Table

DISPENSABLE = ("license", "source", "aliases", "paper", "ran_with_real_weights", "template")  # what a narrow terminal goes without, in this order


@dataclass(frozen=True)
class Arguments:
    """What to list."""

    kind: Annotated[str, Positional] = ""
    """vision, language, image, text, connectors, templates, datasets or presets (of both kinds of model); empty: all."""
    json: bool = False
    """Print JSON instead of tables."""
    markdown: bool = False
    """Print the tables of docs/components.md."""


def main(argv: Sequence[str]) -> None:
    """Print tables, or JSON."""
    arguments = parse(Arguments, argv, prog="vlm list", description="List what can be composed, prepared and run.")
    from vlm.models.catalog import list_components, markdown, open_names

    if arguments.markdown:
        print(markdown(), end="")
        return
    listed = list_components(arguments.kind or None)
    if arguments.json:
        print(json.dumps(listed, indent=2))
        return
    for kind, rows in listed.items():
        if kind in PRINTERS:
            PRINTERS[kind]()
        else:
            _print_table(kind, rows, open_names(kind))


def _print_presets() -> None:
    from vlm.commands.terminal import console
    from vlm.conf.overview import CONTRASTIVE, contrastive_table, table

    width = console().width
    lines = ["presets", "", *table(width), "", f"{CONTRASTIVE}:", "", *contrastive_table(width)]
    print("\n".join([*lines, "", "Of a model with several stages the last one is shown;", "all of a preset: vlm inspect PRESET"]))


PRINTERS = {"presets": _print_presets}  # kinds that have a better form than a row for each entry


def _print_table(kind: str, rows: list[dict[str, Any]], open_names: Sequence[str]) -> None:
    from vlm.commands.terminal import console

    out = console()
    shown = list(rows[0]) if rows else []
    left_out = []
    for column in DISPENSABLE:
        if column in shown and _width(_table(kind, rows, shown)) > out.width:
            shown.remove(column)
            left_out.append(column.replace("_", " "))
    out.print(_table(kind, rows, shown))
    if left_out:
        out.print(f"  left out, as the terminal is narrow: {', '.join(left_out)}; --json has them\n", markup=False, soft_wrap=True)
    if open_names:
        out.print(f"  also by name: {', '.join(open_names)}\n", markup=False, soft_wrap=True)


def _table(kind: str, rows: list[dict[str, Any]], columns: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=kind, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = isinstance(rows[0][column], int)
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=number or column == "name", justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def _width(table: "Table") -> int:
    """Columns of a terminal that a table takes without folding a cell."""
    from rich.console import Console

    return Console(width=10_000).measure(table).maximum


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else repr(value)[1:-1] if isinstance(value, str) else str(value)

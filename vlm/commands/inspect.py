"""`vlm inspect NAME`: what a part or a preset is made of, without loading weights, or the facts of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vlm.conf.cli import Positional, parse


@dataclass(frozen=True)
class Arguments:
    """What to show."""

    name: Annotated[str, Positional]
    """A vision backbone, language model, image encoder, text encoder, connector, dataset or preset."""


def main(argv: Sequence[str]) -> None:
    """Print facts and module tree."""
    arguments = parse(Arguments, argv, prog="vlm inspect", description="Show what a part, a preset or a dataset is made of; loads no weights.")
    from rich import box
    from rich.table import Table

    from vlm.commands.terminal import console
    from vlm.models.catalog import inspect

    shown = inspect(arguments.name)
    out = console()
    out.print(f"{shown.kind} {shown.name}\n", markup=False)
    for label, value in shown.facts.items():
        out.print(f"  {label:16} {value}", markup=False, soft_wrap=True)
    if not shown.tree:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("module", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    for path, kind, count in shown.tree:
        table.add_row(path, kind, f"{count:,}")
    out.print(table)

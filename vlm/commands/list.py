"""`vlm list [KIND] [--json]`: every name that a composition, a dataset or a run can use."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vlm.conf.cli import Positional, parse
from vlm.errors import UnknownNameError


@dataclass(frozen=True)
class Arguments:
    """What to list."""

    kind: Annotated[str, Positional] = ""
    """vision, language, text, connectors, templates, datasets or presets; empty: all."""
    json: bool = False
    """Print JSON instead of tables."""


def main(argv: Sequence[str]) -> None:
    """Print tables, or JSON."""
    arguments = parse(Arguments, argv, prog="vlm list", description="List what can be composed, prepared and run.")
    listed = list_components(arguments.kind or None)
    if arguments.json:
        print(json.dumps(listed, indent=2))
        return
    for kind, rows in listed.items():
        _print_table(kind, rows)


def list_components(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """The registered names of one kind or of all, with what is known of each before any download.

    Raises:
        UnknownNameError: If there is no such kind.
    """
    if kind is not None and kind not in LISTERS:
        raise UnknownNameError("kind of component", kind, LISTERS)
    return {name: lister() for name, lister in LISTERS.items() if kind in (None, name)}


def _vision() -> list[dict[str, Any]]:
    from vlm.backbones.vision import VISION

    def row(name: str, spec: Any) -> dict[str, Any]:
        sizes = {"pixels": spec.image_size, "patches": spec.num_patches, "width": spec.width, "parameters": spec.num_parameters}
        return {"name": name, **sizes, "source": spec.source, "license": spec.license, **_ran("vision", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in VISION.items()]


def _language() -> list[dict[str, Any]]:
    from vlm.backbones.language import LANGUAGE

    def row(name: str, spec: Any) -> dict[str, Any]:
        template = spec.template.name if spec.template else ""
        sizes = {"context": spec.max_length, "width": spec.width, "parameters": spec.num_parameters, "template": template}
        return {"name": name, **sizes, "source": spec.source, "license": spec.license, **_ran("language", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in LANGUAGE.items()]


def _connectors() -> list[dict[str, Any]]:
    from vlm.connectors import CONNECTORS

    return [{"name": name, "paper": spec.paper, "aliases": list(spec.aliases)} for name, spec in CONNECTORS.items()]


def _templates() -> list[dict[str, Any]]:
    from vlm.backbones.language.chat_templates import TEMPLATES

    return [{"name": name, "answer": template.assistant_start + template.assistant} for name, template in sorted(TEMPLATES.items())]


def _datasets() -> list[dict[str, Any]]:
    from vlm.data.datasets import DATASETS

    return [{"name": name, "license": spec.license, "description": spec.description} for name, spec in DATASETS.items()]


def _presets() -> list[dict[str, Any]]:
    from vlm.conf.presets import PRESETS

    def row(name: str, config: Any) -> dict[str, Any]:
        model = config.model
        return {"name": name, "vision": model.vision, "connector": model.connector, "language": model.language, "dataset": config.stage.dataset}

    return [row(name, config) for name, config in PRESETS.items()]


LISTERS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "vision": _vision,
    "language": _language,
    "connectors": _connectors,
    "templates": _templates,
    "datasets": _datasets,
    "presets": _presets,
}


def _ran(kind: str, name: str) -> dict[str, str]:
    """The column that says whether an entry ever ran with its real weights."""
    from vlm.verified import verifications

    record = verifications().get(f"{kind}/{name}")
    return {"ran_with_real_weights": record.date if record else "no"}


def _print_table(kind: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a pipe has no width: do not fold lines that a program may read
    table = Table(title=kind, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0] if rows else ():
        number = isinstance(rows[0][column], int)
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=number or column == "name", justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else repr(value)[1:-1] if isinstance(value, str) else str(value)

"""HTML pages from templates, tables of a terminal, and files that are written whole or not at all. Knows no content."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError

NUMBER = re.compile(r"\W*(\d[\d.,]*(e[-+]?\d+)?\W*([a-zA-Z]{0,2}|\s.*))?")  # "1,234", "0.5x", "71.2 (68.0 to 74.1)", a dash; not "0001.jpg"


def filled(template: Path, values: Mapping[str, Any]) -> str:
    """The page of a template; a value that it names and does not get is an error.

    Args:
        template: Its file.
        values: What it shows.
    """
    import jinja2

    text = template.read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text).render(values)


@dataclass(frozen=True)
class TerminalTable:
    """A table that rich prints; one that is too wide for the terminal is turned if it fits then, and else has its cells folded, never cut.

    Args:
        columns: Headings. Numbers stand at the right of their column, from the second column on.
        rows: Cells, formatted by the caller; they may hold rich's markup.
        caption: Stands above; empty for none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """What rich asks a thing that it prints: the table, or the turned one."""
        given, turned = self._table(self.columns, self.rows), self._table(*self._turned())
        fits = [console.measure(table, options=options.update_width(10_000)).maximum <= options.max_width for table in (given, turned)]
        yield turned if fits == [False, True] else given

    def _turned(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        header, *rows = zip(self.columns, *self.rows, strict=True)
        return header, rows

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(title=self.caption or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(columns):
            right = i > 0 and all(_is_number(row[i]) for row in rows)
            table.add_column(column, justify="right" if right else "left", overflow="fold")  # models whose names are cut look alike
        for row in rows:
            table.add_row(*row)
        return table


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, whatever its unit, or nothing in the place of one."""
    from rich.text import Text

    return NUMBER.fullmatch(Text.from_markup(cell).plain) is not None


def write_whole(path: Path, content: str | bytes, *, remedy: str) -> Path:
    """Write a file under a temporary name and rename it; its folder is made if it is missing.

    Raises:
        ConfigError: If it cannot be written; ends with the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_name(path.name + ".tmp")
        building.write_bytes(content.encode() if isinstance(content, str) else content)
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. {remedy}") from error
    return path

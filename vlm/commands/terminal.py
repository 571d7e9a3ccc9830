"""The console that commands print tables on."""

from collections.abc import Iterable, Sequence

from rich.console import Console

from vlm.pages import TerminalTable

PIPE_WIDTH = 240  # a pipe has no width: lines that a program may read are not folded


def console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for any table where there is none."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


def show_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as `vlm.evaluate.report.Table` does, without loading torch; cells may hold rich's markup.

    Args:
        caption: Stands above.
        columns: Headings. Numbers stand at the right of their column, from the second column on.
        rows: Cells, formatted by the caller.
    """
    print_to = console()
    print_to.print(caption)
    print_to.print(TerminalTable(columns, list(rows)))

"""The console that commands print tables on."""

from rich.console import Console

PIPE_WIDTH = 240  # a pipe has no width: lines that a program may read are not folded


def console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for any table where there is none."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out

"""The run on the terminal: a bar with the metrics under it, or lines now and then in a log file."""

import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from vlm.tracking.base import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0  # on something that is no terminal, where a progress bar cannot move
TERA = 1e12


def counting(blocks: Iterable[Item], total: int, *, what: str = "counting tokens") -> Iterable[Item]:
    """Pass blocks of work through under a progress bar on standard error, if that is a terminal; `what` says what is being done."""
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stderr)
    return progress.track(blocks, what, total=total, transient=True, console=console, disable=not console.is_terminal)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 2:05:09; days where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"


def in_words(metrics: Mapping[str, float]) -> list[str]:
    """The metrics that one looks at while a run goes on, each as a short phrase; what is not there is left out."""
    rates = [f"{part.removeprefix('lr/')} {rate:.1e}" for part, rate in metrics.items() if part.startswith("lr/")]
    phrases = {
        "loss": lambda loss: f"loss {loss:.3f}",
        "grad_norm": lambda norm: f"grad norm {norm:.3g}",
        "num_skipped": lambda _: "step skipped",
    }
    speeds = {
        "tokens_per_second": lambda speed: f"{speed:,.0f} tokens/s",
        "pairs_per_second": lambda speed: f"{speed:,.0f} pairs/s",
        "images_per_second": lambda speed: f"{speed:,.{0 if speed >= 10 else 1}f} images/s",
        "flops_per_second": lambda speed: f"{speed / TERA:.3g} TFLOP/s",
        "mfu": lambda share: f"mfu {100 * share:.1f} %",
        "data_wait_share": lambda share: f"data wait {100 * share:.0f} %",
    }
    said = [phrase(metrics[name]) for name, phrase in phrases.items() if name in metrics]
    return [*said, *([f"lr {', '.join(rates)}"] if rates else []), *(phrase(metrics[name]) for name, phrase in speeds.items() if name in metrics)]


def fold(phrases: Sequence[str], width: int) -> list[str]:
    """Lines of whole phrases, none wider than `width` columns unless a phrase is."""
    unbroken = "   ".join(phrase.replace(" ", "\N{NO-BREAK SPACE}") for phrase in phrases)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(unbroken, width, break_long_words=False, break_on_hyphens=False)]


class Progress:
    """A progress bar over the latest metrics, with the time left; lines instead where there is no terminal."""

    def __init__(self, title: str, num_steps: int, *, taken: int = 0):
        """Open the bar.

        Args:
            title: What is being done.
            num_steps: Optimizer steps.
            taken: Steps that were taken before, by the run that is resumed.
        """
        from rich import progress
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=sys.stderr)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=num_steps, completed=taken, left="")
        self._title, self._num_steps, self._taken, self._words = title, num_steps, taken, [""]
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._started, self._printed = time.monotonic(), -SECONDS_BETWEEN_LINES
        if self._live:
            self._live.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line."""
        if "loss" not in metrics and "num_skipped" not in metrics:
            self._print(f"  step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
            return
        now = time.monotonic()
        left = duration((now - self._started) / (step - self._taken) * (self._num_steps - step))
        self._words = in_words(metrics)
        self._bar.update(self._task, completed=step, left=f"· {left} left")
        if not self._live and (now - self._printed >= SECONDS_BETWEEN_LINES or step == self._num_steps):
            self._print(f"{self._title} {step}/{self._num_steps}  {'  '.join(self._words)}  {left} left")
            self._printed = now

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Print what the model said."""
        for sample in samples:
            self._print(f"  step {step}  {sample.question!r} -> {sample.generated!r} (truth: {sample.reference!r})")

    def _render(self) -> "RenderableType":
        """The bar and, folded between phrases, the metrics."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        lines = fold(self._words, self._console.width - 2)
        return Group(self._bar, Padding(Text("\n".join(lines), style="dim", no_wrap=True), (0, 0, 0, 2)))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """Close the bar; it stays with the last metrics."""
        if self._live:
            self._live.stop()

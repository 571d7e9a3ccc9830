"""Where metrics go: the console, a JSONL file, Weights & Biases. Knows numbers and pictures, not what they measure."""

import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from vlm.errors import ConfigError, MissingPackageError

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0  # on something that is no terminal, where a progress bar cannot move


@dataclass(frozen=True)
class Shown:
    """A validation picture with what was asked, what is true, and what the model said."""

    image: Path | None
    question: str
    reference: str
    generated: str


@runtime_checkable
class Tracker(Protocol):
    """Takes what a run reports."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics after an optimizer step, counted from 1."""
        ...

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Validation pictures with generated text."""
        ...

    def finish(self) -> None:
        """The run is over."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that the trackers' packages are installed.

    Raises:
        MissingPackageError: If one is not.
    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise MissingPackageError("wandb", needed_for="--tracking.trackers wandb", extra="track")


def counting(blocks: Iterable[Item], total: int) -> Iterable[Item]:
    """Pass blocks of work through under a progress bar on standard error, if that is a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stderr)
    return progress.track(blocks, "counting tokens", total=total, transient=True, console=console, disable=not console.is_terminal)


class Progress:
    """A progress bar with loss, throughput and time left; lines instead of a bar where there is no terminal."""

    def __init__(self, title: str, num_steps: int):
        """Open the bar.

        Args:
            title: What is being done.
            num_steps: Optimizer steps.
        """
        from rich import progress
        from rich.console import Console

        console = Console(file=sys.stderr)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[text]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=num_steps, text="")
        self._title, self._num_steps, self._live = title, num_steps, console.is_terminal
        self._started, self._printed = time.monotonic(), -SECONDS_BETWEEN_LINES
        self._bar.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line."""
        speed = f"  {metrics['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in metrics else ""
        if "loss" not in metrics:
            self._print(f"  step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
            return
        text = f"loss {metrics['loss']:.3f}{speed}"
        self._bar.update(self._task, completed=step, text=text)
        now = time.monotonic()
        if not self._live and (now - self._printed >= SECONDS_BETWEEN_LINES or step == self._num_steps):
            left = (now - self._started) / step * (self._num_steps - step)
            self._print(f"{self._title} {step}/{self._num_steps}  {text}  {left:.0f} s left")
            self._printed = now

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Print what the model said."""
        for sample in samples:
            self._print(f"  step {step}  {sample.question!r} -> {sample.generated!r} (truth: {sample.reference!r})")

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """Close the bar."""
        self._bar.stop()


class JSONL:
    """One JSON object a line, in `metrics.jsonl` of the run folder."""

    def __init__(self, path: Path, *, after_step: int | None = None):
        """Append to a file; it is created if it is missing.

        Args:
            path: The file.
            after_step: Lines of later steps are taken away first, as is a last line that was cut: a resumed run takes those steps again.
        """
        if after_step is not None and path.exists():
            _cut(path, after_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and flush a line, so that a killed run keeps what it measured."""
        self._write({"step": step, **metrics})

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Write the texts; the pictures by their paths."""
        self._write({"step": step, "samples": [vars(sample) | {"image": str(sample.image or "")} for sample in samples]})

    def _write(self, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"{self._file.name} cannot be written: {error.strerror}. Free space, or choose another --run-root.") from error

    def finish(self) -> None:
        """Close the file; that the disk is full was said when a line could not be written."""
        with suppress(OSError):
            self._file.close()


def _cut(path: Path, last_step: int) -> None:
    """Keep the lines up to a step; the file is replaced in one go."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):
            whole = False
        kept += [line] if whole else []
    shorter = path.with_name(path.name + ".tmp")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(path)


class WandB:
    """Weights & Biases; offline with WANDB_MODE=offline."""

    def __init__(self, *, run_id: str, run_dir: Path, config: Mapping[str, Any], project: str, entity: str | None):
        """Start a run under the run folder's name.

        Raises:
            ConfigError: If the service refuses or cannot be reached.
        """
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(project=project, entity=entity, name=run_id, dir=str(run_dir), config=dict(config))
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(f"Weights & Biases did not start: {reason}. Run `wandb login`, or set WANDB_MODE=offline.") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics under their own names."""
        self._run.log(dict(metrics), step=step)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Log the pictures with what was said as captions, and a table; the table alone would keep its pictures out of the run's folder when offline."""
        table = self._wandb.Table(columns=["image", "question", "reference", "generated"])
        pictures = []
        for sample in samples:
            image = None
            if sample.image is not None:
                caption = f"{sample.question} -> {sample.generated} (truth: {sample.reference})"
                image = self._wandb.Image(str(sample.image), caption=caption)
                pictures.append(image)
            table.add_data(image, sample.question, sample.reference, sample.generated)
        self._run.log({"samples": table, "pictures": pictures} if pictures else {"samples": table}, step=step)

    def finish(self) -> None:
        """Close the run."""
        self._run.finish()


class Trackers:
    """Several trackers as one; none on ranks other than 0."""

    def __init__(self, trackers: Sequence[Tracker]):
        """Hold the trackers."""
        self._trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """To every tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """To every tracker."""
        for tracker in self._trackers:
            tracker.show(step, samples)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.finish()

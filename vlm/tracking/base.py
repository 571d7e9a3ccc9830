"""What a tracker is, and several of them as one. Knows no tracker by its class."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vlm.errors import MissingPackageError

PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}  # what a tracker needs, by the tracker's name; all in the extra `track`


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
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise MissingPackageError(PACKAGES[name], needed_for=f"--tracking.trackers {name}", extra="track")


def nothing_more() -> Mapping[str, float]:
    """No metrics beside a step's own."""
    return {}


class Trackers:
    """Several trackers as one; none on ranks other than 0."""

    def __init__(self, trackers: Sequence[Tracker], also: Callable[[], Mapping[str, float]] = nothing_more):
        """Hold the trackers.

        Args:
            trackers: Who is told.
            also: Metrics that every step's get, such as `SystemMetrics`; asked only if someone is told.
        """
        self._trackers, self._also = list(trackers), also

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """To every tracker; metrics of training steps, those with a loss, with the others that belong to each step."""
        if self._trackers and "loss" in metrics:
            metrics = {**metrics, **self._also()}
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

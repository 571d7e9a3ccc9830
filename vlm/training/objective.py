"""What a stage trains and from what, as the engine sees it: the two kinds of models differ here and nowhere else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from vlm.conf.schema import BatchPlan, RunConfig
from vlm.data.stream.order import Position
from vlm.tracking import Shown
from vlm.training.meter import Meter
from vlm.types import TrainBatch, World


@dataclass(frozen=True)
class Stream:
    """The data of a run in its order.

    Attributes:
        digest: A hash of everything that the order depends on but the config.
        num_steps: Optimizer steps of the run.
        summary: How much that is, in words.
        lines: What else there is to say about the order.
        batches: From a number of steps and a position to this rank's micro-batches.
        sample_id: From a number in `TrainBatch.samples` to an id that a person finds in the data.
        sources: Names of the sources of a mixture.
    """

    digest: str
    num_steps: int
    summary: str
    lines: Sequence[str]
    batches: Callable[[int, Position], Iterable[TrainBatch]]
    sample_id: Callable[[int], str]
    sources: Sequence[str] = ()


@runtime_checkable
class Objective(Protocol):
    """A model, its data and how it is looked at; a frozen dataclass with the run's config."""

    config: Any  # a RunConfig
    is_exact_in_bf16: bool  # True if no large matrix product of a bf16 run should be in fp32

    def resolved(self) -> RunConfig:
        """The config with what the stage says of the model written into the model."""
        ...

    def plan(self, world: World) -> BatchPlan:
        """How batches are cut.

        Raises:
            VLMError: If anything does not fit that can be known without data or weights.
        """
        ...

    def find_start(self) -> Path | None:
        """The checkpoint that `--init-from` names; None if none is named."""
        ...

    def open_data(self) -> None:
        """Open the data, and refuse what is wrong with it, before weights are loaded."""
        ...

    def build(self, *, precision: str, start: Path | None) -> nn.Module:
        """The model, with the weights that it starts from, its frozen parts frozen."""
        ...

    def stream(self, model: Any, world: World, plan: BatchPlan) -> Stream:
        """The data in its order."""
        ...

    def prepare(self, model: Any) -> None:
        """What is computed from the data before the first step of a run that starts from nothing."""
        ...

    def describe(self, model: Any) -> list[str]:
        """Lines about the model for the log."""
        ...

    def model_values(self, model: Any) -> Mapping[str, Any]:
        """The contents of `model.json`."""
        ...

    def meter(self, *, precision: str, world: World) -> Meter:
        """What counts FLOPs."""
        ...

    @property
    def is_looked_at(self) -> bool:
        """True if there is held-out data."""
        ...

    def look(self, model: Any, autocast: Callable[[], AbstractContextManager]) -> tuple[dict[str, float], list[Shown]]:
        """Metrics on held-out data, and what the model makes of some of it."""
        ...

"""What a run writes down of itself while it trains: where it stands, and checkpoints of it. Knows nothing of how they are written."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlm.data.stream.order import Position
from vlm.distributed.checkpoint import optimizer_tensors, snapshot
from vlm.distributed.shard import whole_on_main
from vlm.models.checkpoint import trained_state
from vlm.training.checkpoints import Checkpoints, Contents, RunState
from vlm.training.loop import Trainee, refuse_broken_weights
from vlm.types import World


class Recorder:
    """Keeps where a run stands, and copies it into checkpoints."""

    def __init__(self, trainee: Trainee, model_values: Mapping[str, Any], checkpoints: Checkpoints, world: World, state: RunState):
        """Begin where the run begins or goes on.

        Args:
            trainee: Model and optimizer.
            model_values: Contents of `model.json`.
            checkpoints: Where checkpoints go.
            world: The processes of this run.
            state: Where the run stands.
        """
        self._trainee, self._model_values, self._checkpoints, self._world = trainee, model_values, checkpoints, world
        self._state, self._began = state, time.monotonic() - state.seconds
        self._saved = state.step

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._state.step

    @property
    def seconds(self) -> float:
        """Time that training has taken so far, resumed runs counted together."""
        return time.monotonic() - self._began

    def advance(self, step: int, position: tuple[int, ...]) -> None:
        """A step was taken.

        Args:
            step: Its number.
            position: Where the stream of rows goes on.
        """
        self._state = replace(self._state, step=step, position=Position(*position))

    def save(self) -> None:
        """Copy the run as it stands into a checkpoint; every rank comes here at the same step.

        Raises:
            ConfigError: If a trained weight is not a number.
            CheckpointError: If the checkpoint before could not be written.
        """
        model: Any = self._trainee.model
        refuse_broken_weights(model, self.step)  # on every rank, so that none waits for one that has left
        weights = whole_on_main(trained_state(model), self._world)
        optimizer = snapshot(optimizer_tensors(model, self._trainee.optimizer), self._world)
        self._checkpoints.save(self.step, Contents(weights, self._model_values, optimizer, replace(self._state, seconds=self.seconds)))
        self._saved = self.step

    def finish(self) -> None:
        """Save what was not saved yet.

        Raises:
            ConfigError: If a trained weight is not a number.
            CheckpointError: If a checkpoint could not be written.
        """
        if self._saved != self.step:
            self.save()
        self._checkpoints.finish()

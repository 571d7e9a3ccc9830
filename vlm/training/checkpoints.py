"""The checkpoints of a run: copied in the step, written in the background under a temporary name, verified, renamed, thinned out.

A folder without `.tmp` in its name is whole, at any moment and whatever kills the run. Knows what a checkpoint holds as values; `vlm.training.resume` reads it.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vlm.data.stream.order import START, Position
from vlm.distributed.checkpoint import write_tensors
from vlm.distributed.collectives import gather, patient_group
from vlm.errors import CheckpointError
from vlm.models.checkpoint import WEIGHTS, write_model
from vlm.training.run_folder import checkpoint_folder
from vlm.types import World

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of run.json
SECONDS_TO_WAIT = 0.25  # for a checkpoint: small ones stand before the next step, so that a kill costs their interval at most
SECONDS_FOR_OTHERS = 60.0  # to finish a checkpoint with the other ranks after this one has failed
STATE, RUN, FILES = "state", "run.json", "files.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: Steps taken.
        position: Where the stream of rows goes on.
        seconds: Time that training has taken so far.
        data: Digest of the order of the data.
    """

    step: int = 0
    position: Position = START
    seconds: float = 0.0
    data: str = ""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, copied out of training.

    Attributes:
        weights: What others load; the main process writes it.
        model: Values of `model.json`.
        state: The optimizer's tensors, each rank its own.
        run: Where the run stands.
    """

    weights: Mapping[str, Tensor]
    model: Mapping[str, Any]
    state: Mapping[str, Tensor]
    run: RunState


class Checkpoints:
    """Writes the checkpoints of one run; every rank has one, and all save at the same steps."""

    def __init__(self, run_dir: Path, world: World, *, keep_last: int | None = None, keep_every: int | None = None):
        """Remove what an earlier process left half-written.

        Args:
            run_dir: The run folder.
            world: The processes of this run.
            keep_last: Latest checkpoints that are kept; None: all.
            keep_every: Checkpoints at multiples of so many steps are kept as well.
        """
        self._run_dir, self._world, self._keep_last, self._keep_every = run_dir, world, keep_last, keep_every
        self._group = patient_group("checkpoints") if world.size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        if world.is_main:
            for path in (run_dir / "checkpoints").glob("*.tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, contents: Contents) -> None:
        """Write a checkpoint in the background, once the one before it stands.

        Raises:
            CheckpointError: If the one before it could not be written.
        """
        self.finish()
        self._thread = threading.Thread(target=self._guarded, args=(step, contents), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()
        self._thread.join(timeout=SECONDS_TO_WAIT)

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: If a checkpoint could not be written; those before it are intact.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; after an error of the run not for ever, since other ranks may be gone, and its own error is the one to hear of."""
        if kind is None:
            self.finish()
        elif self._thread is not None:
            self._thread.join(timeout=None if self._world.size == 1 else SECONDS_FOR_OTHERS)

    def _guarded(self, step: int, contents: Contents) -> None:
        folder = checkpoint_folder(self._run_dir, step)
        try:
            self._write(folder, contents)
        except Exception as error:  # of a thread: whatever it is, the loop must hear of it
            if self._world.is_main:
                shutil.rmtree(_building(folder), ignore_errors=True)
            self._error = CheckpointError(
                f"Checkpoint {folder} could not be written: {error}. Free space or choose another --run-root; earlier checkpoints are intact."
            )

    def _write(self, folder: Path, contents: Contents) -> None:
        building = _building(folder)
        self._together(lambda: _begin(building, contents), main_only=True)
        self._together(lambda: write_tensors(contents.state, building / STATE, self._world, group=self._group))
        self._together(lambda: self._complete(building, folder, contents), main_only=True)

    def _together(self, work: Any, *, main_only: bool = False) -> None:
        """Do a piece of work, and raise on every rank what went wrong on any."""
        problem = ""
        try:
            if self._world.is_main or not main_only:
                work()
        except Exception as error:
            problem = str(error) or type(error).__name__
        if found := [line for line in gather(problem, self._world, self._group) if line]:
            raise CheckpointError(found[0].rstrip("."))

    def _complete(self, building: Path, folder: Path, contents: Contents) -> None:
        write_model(contents.weights, contents.model, building)
        _write_json(building / RUN, {"format_version": FORMAT_VERSION} | asdict(contents.run))
        _compare(contents.weights, building / WEIGHTS)
        _write_json(building / FILES, {name: _digest(building / name) for name in _files(building)})
        for path in [building / name for name in _files(building)] + [building / STATE, building]:
            _flush(path)
        if folder.exists():  # of a run that was resumed from an earlier checkpoint, because this one was damaged
            shutil.rmtree(folder)
        building.rename(folder)
        _flush(folder.parent)
        self._thin_out()

    def _thin_out(self) -> None:
        if self._keep_last is None:
            return
        folders = list_checkpoints(self._run_dir)
        for folder in folders[: -self._keep_last]:
            if self._keep_every is None or step_of(folder) % self._keep_every:
                removed = folder.rename(_building(folder))  # so that it is never there by half
                shutil.rmtree(removed, ignore_errors=True)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, by their steps."""
    return sorted((path for path in (run_dir / "checkpoints").glob("step-*") if path.suffix != ".tmp"), key=step_of)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def find_damage(folder: Path) -> str:
    """What is wrong with the files of a checkpoint, in words; empty if each is what was written."""
    try:
        stated = json.loads((folder / FILES).read_text(encoding="utf-8"))
        for name, digest in stated.items():
            path = folder / name
            if path.stat().st_size != digest["size"]:
                return f"{name} has {path.stat().st_size} bytes, {digest['size']} were written"
            if _digest(path) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{getattr(error, 'filename', None) or FILES} cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def _building(folder: Path) -> Path:
    return folder.with_name(folder.name + ".tmp")


def _begin(building: Path, contents: Contents) -> None:
    shutil.rmtree(building, ignore_errors=True)
    (building / STATE).mkdir(parents=True)
    needed = sum(tensor.nbytes for tensor in (*contents.weights.values(), *contents.state.values()))
    free = shutil.disk_usage(building).free
    if free < needed:
        raise CheckpointError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _compare(weights: Mapping[str, Tensor], path: Path) -> None:
    """Read the weights back and compare them with those in memory, one after the other."""
    for name, tensor in weights.items():
        with safe_open(path, framework="pt") as file:  # opened anew, because pages of the file stay in memory until it is closed
            if not torch.equal(file.get_tensor(name), tensor):
                raise CheckpointError(f"{name!r} reads back other than it was written; the disk may be faulty")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)

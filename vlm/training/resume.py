"""How an interrupted run goes on: which checkpoint, whether this is the same run, and where it stood. Writes nothing.

A run is a function of its config and its data; a checkpoint adds the weights, the optimizer's state, the number of steps and the place in the stream of
rows. Ranks and micro-batches may be others than before: they only cut the same global batches differently.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlm.conf.schema import RunConfig
from vlm.conf.serialize import read_config, to_dict
from vlm.data.stream.order import Position, RowOrder
from vlm.distributed.checkpoint import optimizer_tensors, read_tensors
from vlm.errors import CheckpointError, ConfigError, DataFormatError
from vlm.training.checkpoints import RUN, STATE, RunState, find_damage, list_checkpoints
from vlm.training.loop import Trainee
from vlm.types import World

log = logging.getLogger(__name__)

# Settings that say how a run is carried out, watched or stored, but not what it computes.
FREE = (
    *(
        "resume",
        "overwrite",
        "init_from",
        "run_root",
        "data_root",
        "device",
        "tracking",
        "checkpoint_every",
        "keep_last",
        "keep_every",
        "on_nan",
        "cache_root",
        "allow_overlap",
    ),
    *(
        "parallel",
        "dry_run",
        "stage.per_device_batch_size",
        "stage.num_workers",
        "stage.gradient_checkpointing",
        "stage.compile",
        "stage.max_time",
        "stage.validation",
    ),
)
LONGER = ("stage.max_steps", "stage.epochs")  # may change, and then the schedule is another from here on


def find_resume(config: RunConfig) -> Path | None:
    """The checkpoint that a run goes on from; None if it starts.

    Raises:
        ConfigError: If the stored run is another one than this.
        CheckpointError: If the checkpoint that was named is damaged, or a run has checkpoints and none of them is whole.
    """
    if not config.resume or not (config.run_dir / "config.json").is_file():
        _refuse_foreign(config)
        return None
    check_same_run(config)
    if config.resume != "auto":
        _refuse_foreign(config)
        _refuse_damage(Path(config.resume))
        return Path(config.resume)
    folders = list_checkpoints(config.run_dir)
    for folder in reversed(folders):
        damage = find_damage(folder)
        if not damage:
            return folder
        log.warning("warning: checkpoint %s is damaged (%s); the one before it is tried", folder, damage)
    if folders:
        raise CheckpointError(f"None of the {len(folders)} checkpoints in {folders[0].parent} is whole. Use --overwrite to start again.")
    return None


def _refuse_foreign(config: RunConfig) -> None:
    if config.resume in ("", "auto"):
        return
    folder, own = Path(config.resume), config.run_dir / "checkpoints"
    if folder.parent.resolve() != own.resolve() or not folder.is_dir():
        raise CheckpointError(
            f"--resume {folder} is no checkpoint of this run, whose checkpoints are in {own}. Name one of them or `auto`; "
            "to start another run from its weights, use --init-from."
        )


def _refuse_damage(folder: Path) -> None:
    if damage := find_damage(folder):
        raise CheckpointError(f"Checkpoint {folder} is damaged: {damage}. Name an earlier one, or use --resume auto.")


def check_same_run(config: RunConfig) -> None:
    """Compare a config with the one that its run folder stores.

    Raises:
        ConfigError: If a setting differs that changes what the run computes; each is named with both values.
    """
    stored = _flat(to_dict(read_config(config.run_dir / "config.json", type(config))))
    now = _flat(to_dict(config))
    different = [name for name in now if stored.get(name) != now[name] and not _is_free(name)]
    refused = [f"--{_flag(name)} was {stored.get(name)!r}, is {now[name]!r}" for name in different if name not in LONGER]
    if refused:
        raise ConfigError(
            f"{config.run_dir} was started with other settings: {'; '.join(refused)}. Give the same, or start another run (--seed, --model.name)."
        )
    for name in different:
        log.warning(
            "warning: --%s was %s and is %s: the schedule of the learning rate is another one from here on", _flag(name), stored.get(name), now[name]
        )


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def read_state(folder: Path, data: str) -> RunState:
    """Where a run stood at a checkpoint.

    Args:
        folder: The checkpoint.
        data: Digest of the order of the data as it is now.

    Raises:
        CheckpointError: If the file cannot be read.
        DataFormatError: If the data has changed.
    """
    path = folder / RUN
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stored = {field.name: values[field.name] for field in fields(RunState)}
        state = RunState(**stored | {"position": Position(*stored["position"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Use another checkpoint of the run.") from error
    if state.data != data:
        raise DataFormatError(
            f"The data or its order is not what {folder} was trained on, so the run cannot go on exactly. Restore the data, or start another run "
            f"from these weights with --init-from {folder}."
        )
    return state


def digest_order(order: RowOrder) -> str:
    """A hash of everything that the order of the rows depends on but the config: how many units there are, of what samples and lengths."""
    digest = hashlib.sha256(f"{order.units.count} {order.draws.sizes} {order.draws.counts} {order.capacity} {order.window}".encode())
    for array in (*(order.units.trees or ()), order.units.lengths, order.units.with_images):
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def load_optimizer(trainee: Trainee, folder: Path, world: World) -> None:
    """Fill the optimizer with the state of a checkpoint, whatever number of ranks wrote it.

    Raises:
        CheckpointError: If the state is damaged or of other weights.
    """
    read_tensors(optimizer_tensors(trainee.model, trainee.optimizer), folder / STATE, world)

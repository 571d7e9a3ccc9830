"""Tensors of all ranks to a folder and back, through torch.distributed.checkpoint (DCP): each rank writes its own file, any number of ranks reads them.

Knows names and tensors, neither models nor optimizers.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlm.errors import CheckpointError, reason_of
from vlm.types import World


def snapshot(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Copies in main memory, which later steps of training do not change; what every rank has alike, on the main one alone."""
    return {name: _copied(tensor.detach()) for name, tensor in tensors.items() if world.is_main or isinstance(tensor, DTensor)}


def _copied(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.to("cpu", copy=True)
    local = tensor.to_local().to("cpu", copy=True)
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, world: World, *, group: Any = None) -> None:
    """Write the tensors of all ranks; every rank comes here, and all fail if one does.

    Args:
        tensors: This rank's tensors; of a sharded one its shard, of a replicated one the whole.
        folder: Where the files go; it exists.
        world: The processes of this run.
        group: What the ranks speak through, a `patient_group`; None in a run of one process.

    Raises:
        CheckpointError: If a rank cannot write.
    """
    dcp = _dcp()
    try:
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), process_group=group, no_dist=world.size == 1)
    except (Exception, dcp.CheckpointException) as error:  # that one, what went wrong on any rank, is no Exception
        raise CheckpointError(_reason(error)) from error


def read_tensors(tensors: Mapping[str, Tensor], folder: Path, world: World) -> None:
    """Fill tensors in place with what was written, whatever number of ranks wrote it.

    Raises:
        CheckpointError: If the folder is damaged, lacks a tensor or holds one that is not wanted, or of another shape.
    """
    dcp = _dcp()
    try:
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        for name in sorted(stored.keys() ^ tensors.keys()):
            raise CheckpointError(
                f"{folder} {'holds' if name in stored else 'lacks'} {name!r}, and this run {'lacks' if name in stored else 'needs'} it"
            )
        for name, tensor in tensors.items():
            size = getattr(stored[name], "size", None)
            if size != tensor.shape:
                raise CheckpointError(f"{folder}: {name!r} has shape {tuple(size or ())}, this run needs {tuple(tensor.shape)}")
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(folder), no_dist=world.size == 1)
    except CheckpointError:
        raise
    except (Exception, dcp.CheckpointException) as error:  # whatever a pickle of a damaged file can raise
        raise CheckpointError(f"{folder} cannot be read: {_reason(error)}") from error


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by the names of the weights, `<weight>/exp_avg` and so on; of weights that were never stepped, zeros as they start.

    Rates and decay are not among them: they are settings, and functions of the step.
    """
    state: dict[str, Tensor] = {}
    trained = {weight for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        if weight in trained:
            state |= {f"{name}/{key}": value for key, value in _state_of(optimizer, weight).items()}
    return state


def _state_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """The state of one weight, made as AdamW makes it before its first step if there is none."""
    if not optimizer.state[weight]:
        fused = bool(optimizer.defaults.get("fused"))
        step = torch.zeros((), dtype=torch.float32, device=weight.device if fused else "cpu")
        optimizer.state[weight].update(step=step, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
    return optimizer.state[weight]


def _dcp() -> Any:
    """The library, told that one process without a group is meant. A filter, not `catch_warnings`, which threads must not use."""
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized", category=UserWarning)
    return dcp


def _reason(error: BaseException) -> str:
    """What went wrong on the first rank that failed, on one line."""
    failures = getattr(error, "failures", None)
    first = next(iter(failures.values()))[0] if failures else error
    return reason_of(first).rstrip(".")

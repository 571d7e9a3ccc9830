"""How a model is spread over the ranks: DDP through accelerate, or FSDP2 through torch's `fully_shard`. Knows no loss.

Not accelerate's FSDP, which on CPU falls back to DDP without a word. FSDP2 (after Zhao et al. 2023, arXiv:2304.11277): each rank keeps its rows of
every weight as a `DTensor`, frozen or trained, in the type that the weight has; a unit's weights are gathered when the unit is called, so all ranks must
call the same units in the same order.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vlm.distributed.placement import Placement
from vlm.types import World


def spread(model: Any, placement: Placement, world: World) -> nn.Module:
    """The model as the ranks run it together; gradients are then averaged over all of them.

    Comes after weights are loaded and frozen, and before the optimizer is made: sharding puts other parameters in the places of the model's own.

    Args:
        model: The model; one that is sharded names its units, `model.units()`, and is changed in place.
        placement: Which rank holds what.
        world: The processes of this run.
    """
    if placement.is_sharded:
        return _sharded(model, placement, world)
    if world.size == 1:
        return model
    from accelerate import Accelerator

    # Autocast is the loop's, whatever `accelerate launch` was told.
    wrapped = Accelerator(cpu=world.device.type == "cpu", mixed_precision="no").prepare_model(model)
    if hasattr(wrapped, "_set_ddp_runtime_logging_sample_rate"):
        wrapped._set_ddp_runtime_logging_sample_rate(1)  # times of every step, for `exchange_seconds`
    return wrapped


def _sharded(model: Any, placement: Placement, world: World) -> nn.Module:
    mesh = _mesh(placement, world.device.type)
    # Autocast chooses the type of products, as without sharding; gradients of bf16 weights are summed in fp32.
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for unit in model.units():
        fully_shard(unit, mesh=mesh, mp_policy=exact, reshard_after_forward=placement.reshard_after_forward)
    # What is in no unit (embeddings, head, last norm) stays gathered until the backward pass: methods of the parts use it besides their calls.
    return fully_shard(model, mesh=mesh, mp_policy=exact)


def _mesh(placement: Placement, device: str) -> DeviceMesh:
    if placement.replicas == 1:
        return init_device_mesh(device, (placement.shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (placement.replicas, placement.shards), mesh_dim_names=("replicate", "shard"))


def is_sharded(model: nn.Module) -> bool:
    """True if ranks hold shares of the model, so that all of them must take part in whatever it computes."""
    return isinstance(model, FSDPModule)


def gradient_exchange(model: Any, *, on: bool) -> AbstractContextManager:
    """A context in which backward passes exchange gradients, or (for all micro-batches but the last) do not.

    A sharded model sums gradients within a copy in every pass, or each rank would hold gradients as large as the whole model; only copies wait.
    """
    if is_sharded(model):
        model.set_requires_all_reduce(on)
        return nullcontext()
    return nullcontext() if on or not hasattr(model, "no_sync") else model.no_sync()


def exchange_seconds(model: Any) -> float:
    """Seconds of an earlier backward pass in which gradients were exchanged and nothing was computed, by DDP's own clock; 0 where nobody measures it.

    It is the last step's but one: DDP reads its timers when the next forward pass begins, so that nothing waits for them.
    """
    times = model._get_ddp_logging_data() if hasattr(model, "_get_ddp_logging_data") else {}
    return max(0, times.get("backward_comm_time", 0) - times.get("backward_compute_comm_overlap_time", 0)) / 1e9


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Methods of a model's parts can be called besides the model itself, by all ranks alike; units still gather their own weights when they are called.

    For use after the first training step, which tells FSDP2 what the outermost module is.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all ranks, which must all ask for it; one that is not shared is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_main(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole copies in main memory on the main rank, nothing on the others; all ranks come here. One tensor at a time is whole on the other ranks."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.is_main:
            copies[name] = full.to("cpu", copy=True)
    return copies


def is_finite(tensor: Tensor) -> bool:
    """True if every value is finite; of a shared tensor on every rank alike, and all must ask."""
    if not isinstance(tensor, DTensor):
        return bool(tensor.isfinite().all())
    broken = tensor.to_local().isfinite().logical_not().any().int()
    torch.distributed.all_reduce(broken)
    return not broken.item()


def place_of(tensor: Tensor) -> Hashable:
    """Equal for tied weights, and on every rank alike; the empty shares of different weights lie at the same address."""
    return id(tensor) if isinstance(tensor, DTensor) else (tensor.data_ptr(), tensor.shape)

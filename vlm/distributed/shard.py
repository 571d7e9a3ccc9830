"""How a model is spread over the ranks: DDP through accelerate. Knows no model and no loss."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from vlm.types import World


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """The model, wrapped in DistributedDataParallel where there are several ranks; gradients are then averaged over them."""
    if world.size == 1:
        return model
    from accelerate import Accelerator

    # Autocast is the loop's, whatever `accelerate launch` was told.
    wrapped = Accelerator(cpu=world.device.type == "cpu", mixed_precision="no").prepare_model(model)
    if hasattr(wrapped, "_set_ddp_runtime_logging_sample_rate"):
        wrapped._set_ddp_runtime_logging_sample_rate(1)  # times of every step, for `exchange_seconds`
    return wrapped


def gradient_exchange(model: Any, *, on: bool) -> AbstractContextManager:
    """A context in which backward passes exchange gradients, or (for all micro-batches but the last) do not."""
    return nullcontext() if on or not hasattr(model, "no_sync") else model.no_sync()


def exchange_seconds(model: Any) -> float:
    """Seconds of an earlier backward pass in which gradients were exchanged and nothing was computed, by DDP's own clock; 0 where nobody measures it.

    It is the last step's but one: DDP reads its timers when the next forward pass begins, so that nothing waits for them.
    """
    times = model._get_ddp_logging_data() if hasattr(model, "_get_ddp_logging_data") else {}
    return max(0, times.get("backward_comm_time", 0) - times.get("backward_compute_comm_overlap_time", 0)) / 1e9

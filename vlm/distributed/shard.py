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
    return Accelerator(cpu=world.device.type == "cpu", mixed_precision="no").prepare_model(model)


def gradient_exchange(model: Any, *, on: bool) -> AbstractContextManager:
    """A context in which backward passes exchange gradients, or (for all micro-batches but the last) do not."""
    return nullcontext() if on or not hasattr(model, "no_sync") else model.no_sync()

"""Memory of one device in training, by kind, from a model on the meta device. Arithmetic over its weights, and what a trace saw being kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vlm.models.trace import Kept

ADAM_AVERAGES = 2  # of the gradient and of its square (Kingma and Ba 2014, arXiv:1412.6980), in the type of the weight
DDP_COPIES = 2  # the gradient, and its place in a bucket of the exchange


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step; buffers of kernels, the allocator's gaps and the device's own context come on top.

    Attributes:
        weights: Of all parts, in the types that they are trained in, and their buffers.
        gradients: Of trained weights; with several processes, DDP's buckets besides.
        optimizer: AdamW's two averages.
        activations: What is kept for the backward pass of a micro-batch (`Kept.total`).
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


def memory_of(model: nn.Module, kept: Kept, *, num_devices: int, recomputed: Sequence[str]) -> Memory:
    """Memory under DistributedDataParallel: every device has all weights, gradients and averages.

    Args:
        model: The model, its frozen parts frozen.
        kept: What a micro-batch keeps for the backward pass.
        num_devices: Processes that exchange gradients.
        recomputed: Parts with gradient checkpointing.
    """
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    return Memory(
        weights=sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        gradients=trained * (DDP_COPIES if num_devices > 1 else 1),
        optimizer=trained * ADAM_AVERAGES,
        activations=kept.total(recomputed=recomputed),
    )

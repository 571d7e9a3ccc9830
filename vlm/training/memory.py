"""Memory of one device in training, by kind, from a model on the meta device. Arithmetic over its weights, and what a trace saw being kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm.models.trace import Kept
from vlm.models.vision_language import VisionLanguageModel

ADAM_AVERAGES = 2  # of the gradient and of its square (Kingma and Ba 2014, arXiv:1412.6980), in the type of the weight
BLOCKS_AT_WORK = 2  # FSDP2 gathers the next block while one is computed
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


def memory_of(model: VisionLanguageModel, kept: Kept, *, num_devices: int, recomputed: Sequence[str], shards: int = 1) -> Memory:
    """Memory under DistributedDataParallel, where every device has everything, or under FSDP2, where it has its shares and the blocks at work.

    Args:
        model: The model, its frozen parts frozen.
        kept: What a micro-batch keeps for the backward pass.
        num_devices: Processes that exchange gradients.
        recomputed: Parts with gradient checkpointing.
        shards: Devices that share one copy of the weights; 1: none do.
    """
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    copies = DDP_COPIES if num_devices > 1 and shards == 1 else 1
    return Memory(
        weights=weights if shards == 1 else weights // shards + _gathered(model),
        gradients=trained * copies // shards,
        optimizer=trained * ADAM_AVERAGES // shards,
        activations=kept.total(recomputed=recomputed),
    )


def _gathered(model: VisionLanguageModel) -> int:
    """Bytes of weights that a device has whole under FSDP2: the block that is computed, the next one, and what is in no block."""
    blocks = [sum(weight.nbytes for weight in block.parameters()) for tower in (model.vision, model.language) for block in tower.blocks()]
    return sum(weight.nbytes for weight in model.parameters()) - sum(blocks) + sum(sorted(blocks)[-BLOCKS_AT_WORK:])

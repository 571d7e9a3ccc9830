"""Run by the tests under torchrun: one contrastive step for each loss, with the arithmetic of the training loop, its loss and gradients stored."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlm.conf.contrastive import HeadConfig
from vlm.data.stream.pairs import Captions, FreeTexts, PairBatch, PairLoader, PairOrder, TextOrder
from vlm.distributed.collectives import gather_with_gradient, sum_over_ranks
from vlm.distributed.launch import launch
from vlm.distributed.placement import Placement
from vlm.distributed.shard import spread
from vlm.models.alignment_head import AlignmentHead
from vlm.models.contrastive import CONTRASTS, Distillation, LogitScale, Pairs, distillation, weighted_sum
from vlm.types import LossSum, World

TERMS = {"against images": Distillation(), "against texts": Distillation(structure=2.0, divergence="mse", scale=20.0)}


class Table:
    """Random vectors, the same on every rank."""

    def __init__(self, rows: int, width: int, seed: int):
        self.table = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))

    def rows(self, indices: np.ndarray) -> Tensor:
        return self.table[torch.from_numpy(indices)]


class Heads(nn.Module):
    """Two heads, a scale, a loss; ids are folded so that a batch has siblings on both ranks."""

    def __init__(self, loss: str, distilled: str, world: World):
        super().__init__()
        spec = CONTRASTS[loss]
        self.contrast, self.distilled, self.world = spec.loss, distilled, world
        self.image, self.text = AlignmentHead(6, 5, HeadConfig("linear")), AlignmentHead(7, 5, HeadConfig("residual", num_layers=1))
        self.scale = LogitScale(spec.scale, spec.bias)

    def forward(self, batch: PairBatch) -> LossSum:
        assert batch.teacher is not None and batch.texts is not None
        texts = self.text(torch.cat([batch.text, batch.texts.text]))
        pairs = Pairs.of(self.image(batch.image), texts[: len(batch.text)], batch.image_ids % 4, self.world)
        loss = self.contrast(pairs, *self.scale())
        if not self.distilled:
            return loss
        images = (pairs.all_image, pairs.all_image.detach()) if self.distilled == "against images" else None
        teacher = torch.cat([batch.teacher, batch.texts.teacher])
        return weighted_sum((1.0, loss), (0.5, distillation(texts, teacher, TERMS[self.distilled], self.world, images=images)))


def measure(world: World) -> dict[str, dict[str, Tensor]]:
    """Loss and gradients of each case."""
    owners = np.repeat(np.arange(12), 2)
    texts = FreeTexts(Table(10, 7, 3), Table(10, 5, 4), TextOrder(10, 4, 1))
    sources = {"image": Table(12, 6, 0), "text": Table(24, 7, 1), "teacher": Table(24, 5, 2), "texts": texts}
    loader = PairLoader(order=PairOrder(Captions.of(owners, np.arange(24)), 8, 1), world=world.size, rank=world.rank, num_steps=1, **sources)
    (batch,) = loader
    return {f"{loss} {distilled}": step(loss, distilled, batch, world) for loss in CONTRASTS for distilled in ("", *TERMS)}


def step(loss: str, distilled: str, batch: PairBatch, world: World) -> dict[str, Tensor]:
    """As `vlm.training.loop` has it: counts over all ranks before the backward pass, gradients averaged by DDP."""
    torch.manual_seed(0)
    model = Heads(loss, distilled, world)
    wrapped = spread(model, Placement(replicas=world.size), world)
    count = sum_over_ranks(batch.num_labels, world)
    seen = wrapped(batch)
    assert int(seen.count) == batch.num_labels
    (seen.sum * (world.size / count)).backward()
    mean = torch.tensor(sum_over_ranks(seen.sum.item(), world) / count)
    return {"loss": mean} | {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def check_uneven_rows_are_refused(world: World) -> None:
    """On every rank, with all counts."""
    try:
        gather_with_gradient(torch.zeros(3 + world.rank, 2), world)
    except ValueError as error:
        assert "they have 3, 4." in str(error)
    else:
        raise AssertionError("uneven rows were gathered")


if __name__ == "__main__":
    here = launch("cpu")
    check_uneven_rows_are_refused(here)
    torch.save(measure(here), Path(sys.argv[1]) / f"rank{here.rank}.pt")

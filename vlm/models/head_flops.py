"""FLOPs of training the heads of a dual encoder, for any batch: arithmetic over what torch's counter saw in four small batches on the meta device.

Each pair and each text costs the same by itself, and each combination of two of them in a batch, whose similarity is computed: so a step costs
a B + b B^2 + c T + d T^2. Counted as in `vlm.models.flops`: matrix products alone, two for a multiplication and an addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm.conf.contrastive import ContrastiveConfig
from vlm.data.stream.pairs import PairBatch, TextBatch
from vlm.models.dual_build import build_heads
from vlm.models.dual_encoder import AlignmentHeads
from vlm.models.flops import Spent
from vlm.models.losses import WHOLE


@dataclass(frozen=True)
class PairWork:
    """What a rank's batch holds.

    Attributes:
        pairs: Pairs.
        texts: Texts without images.
    """

    pairs: int
    texts: int = 0


@dataclass(frozen=True)
class Cost:
    """FLOPs of what a batch holds of one kind.

    Attributes:
        each: Of one by itself, forward and backward.
        squared: Of a combination of two, forward and backward.
        forward: Of a combination of two, forward alone.
    """

    each: float = 0.0
    squared: float = 0.0
    forward: float = 0.0

    @classmethod
    def split(cls, whole: Sequence[int], forward: Sequence[int]) -> "Cost":
        """From what two and what four cost, forward and backward, and forward alone; none costs nothing."""
        squared, forward_squared = ((four - 2 * two) / 8 for two, four in (whole, forward))
        return cls(whole[0] / 2 - 2 * squared, squared, forward_squared)


@dataclass(frozen=True)
class HeadFlops:
    """FLOPs of a step; the columns of a rank's similarities are the pairs, or texts, of all ranks.

    Attributes:
        pairs: Of pairs.
        texts: Of texts without images.
        ranks: Ranks that share a batch.
    """

    pairs: Cost
    texts: Cost = Cost()
    ranks: int = 1

    @classmethod
    def of(cls, config: ContrastiveConfig, *, ranks: int = 1) -> "HeadFlops":
        """Count the steps of a run's heads, what is frozen frozen.

        Args:
            config: The run; a teacher that is `native` may be named or not.
            ranks: Ranks that share a batch.
        """
        heads = heads_skeleton(config)
        distill = config.stage.distill
        teaches = bool(distill.teacher and distill.weight)
        counts = {pairs: _counted(heads, _batch(heads, pairs, 0, teaches)) for pairs in (2, 4)}
        cost = Cost.split(*zip(counts[2], counts[4], strict=True))
        if not (distill.teacher and distill.texts and distill.texts_weight):
            return cls(cost, ranks=ranks)
        more = [[n - pairs for n, pairs in zip(_counted(heads, _batch(heads, 2, texts, teaches)), counts[2], strict=True)] for texts in (2, 4)]
        return cls(cost, Cost.split(*zip(*more, strict=True)), ranks=ranks)

    @staticmethod
    def work_of(batch: PairBatch) -> PairWork:
        """What a batch holds."""
        return PairWork(len(batch.image), 0 if batch.texts is None else len(batch.texts.text))

    def spent(self, works: Sequence[PairWork]) -> Spent:
        """FLOPs of this rank in a step; logits that are too many to be kept are computed a second time in the backward pass."""
        useful = recomputed = 0.0
        for cost, rows in [item for work in works for item in ((self.pairs, work.pairs), (self.texts, work.texts))]:
            combinations = rows * rows * self.ranks
            useful += cost.each * rows + cost.squared * combinations
            recomputed += cost.forward * combinations if combinations > WHOLE else 0.0
        return Spent(useful, recomputed, useful + recomputed)


def heads_skeleton(config: ContrastiveConfig) -> AlignmentHeads:
    """The heads of a run on the meta device, what is frozen frozen."""
    with torch.device("meta"):
        heads = build_heads(config.model, distill=config.stage.distill)
    for part in heads.PARTS:
        getattr(heads, part).requires_grad_(part in config.stage.lr.trained)
    return heads.train()


def _batch(heads: AlignmentHeads, pairs: int, texts: int, teaches: bool) -> PairBatch:
    def vectors(rows: int, head: Any, width: str) -> torch.Tensor:
        return torch.empty(rows, getattr(head, width), device="meta")

    batch = PairBatch(vectors(pairs, heads.image_head, "in_width"), vectors(pairs, heads.text_head, "in_width"), torch.arange(pairs, device="meta"))
    if teaches:
        batch = replace(batch, teacher=vectors(pairs, heads.text_head, "out_width"))
    if texts:
        batch = replace(batch, texts=TextBatch(vectors(texts, heads.text_head, "in_width"), vectors(texts, heads.text_head, "out_width")))
    return batch


def _counted(heads: AlignmentHeads, batch: PairBatch) -> tuple[int, int]:
    """FLOPs of a step, and of its forward pass alone."""
    with FlopCounterMode(display=False) as counter:
        loss = heads(batch).sum
        forward = counter.get_total_flops()
        loss.backward()
    heads.zero_grad()
    return counter.get_total_flops(), forward

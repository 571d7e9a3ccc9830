"""FLOPs of heads against torch's counter on a real step, and against what one computes by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm.conf.contrastive import ContrastiveConfig, DistillConfig, HeadConfig, HeadRates
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.data.stream.pairs import PairBatch, TextBatch
from vlm.models.dual_build import build_heads
from vlm.models.head_flops import Cost, HeadFlops, PairWork
from vlm.models.losses import WHOLE

PRESET = CONTRASTIVE_PRESETS["tiny-ape/align"]
PAIRS, TEXTS, WIDTH = 7, 5, 8


def config_of(loss: str = "clip", distill: DistillConfig | None = None, **heads: HeadConfig) -> ContrastiveConfig:
    stage = replace(PRESET.stage, distill=distill or DistillConfig(), lr=HeadRates(image_head=1e-3 if "image_head" in heads else None))
    return replace(PRESET, model=replace(PRESET.model, loss=loss, joint_width=8, **heads), stage=stage)


@pytest.mark.parametrize(
    "config",
    [
        config_of(),
        config_of("siglip", image_head=HeadConfig("linear"), text_head=HeadConfig("residual", num_layers=2)),
        config_of("multi-positive", DistillConfig(teacher="native"), text_head=HeadConfig("glu")),
        config_of("clip", DistillConfig(teacher="native", texts=("x.txt",), structure=2.0)),
        config_of("clip", DistillConfig(teacher="native", texts=("x.txt",), weight=0.0)),
    ],
)
def test_they_are_those_that_torch_counts_in_a_step(config: ContrastiveConfig):
    distill = config.stage.distill
    heads = build_heads(config.model, distill=distill)
    for part in heads.PARTS:
        getattr(heads, part).requires_grad_(part in config.stage.lr.trained)
    teacher = torch.randn(PAIRS, WIDTH) if distill.teacher and distill.weight else None
    texts = TextBatch(torch.randn(TEXTS, WIDTH), torch.randn(TEXTS, WIDTH)) if distill.texts else None
    batch = PairBatch(torch.randn(PAIRS, WIDTH), torch.randn(PAIRS, WIDTH), torch.arange(PAIRS), teacher=teacher, texts=texts)
    with FlopCounterMode(display=False) as counter:
        heads(batch).sum.backward()
    flops = HeadFlops.of(config)
    assert flops.work_of(batch) == PairWork(PAIRS, TEXTS if distill.texts else 0)
    spent = flops.spent([flops.work_of(batch)])
    assert spent.useful == spent.total == counter.get_total_flops() and spent.recomputed == 0


def test_a_linear_head_takes_what_one_computes_by_hand():
    flops = HeadFlops.of(config_of(text_head=HeadConfig("linear")))
    assert flops.pairs.each == 2 * (2 * WIDTH * WIDTH)  # forward, and the gradient of the weights: cached vectors need none
    # both ways forward, and the gradient of the texts in both: cached vectors of images need none
    assert (flops.pairs.forward, flops.pairs.squared) == (2 * 2 * WIDTH, (2 + 2) * 2 * WIDTH)
    assert flops.texts == Cost()


def test_ranks_share_the_work_of_a_batch():
    one, two = (HeadFlops.of(config_of(), ranks=ranks) for ranks in (1, 2))
    assert 2 * two.spent([PairWork(PAIRS)]).useful == one.spent([PairWork(2 * PAIRS)]).useful


def test_logits_that_are_not_kept_are_computed_twice():
    flops = HeadFlops.of(config_of())
    rows = int(WHOLE**0.5) + 1
    spent = flops.spent([PairWork(rows)])
    assert spent.total == spent.useful + spent.recomputed and spent.recomputed == 2 * 2 * WIDTH * rows**2
    assert flops.spent([PairWork(rows - 2)]).recomputed == 0

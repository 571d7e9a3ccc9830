import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vlm.conf.schema import LearningRates, StageConfig
from vlm.errors import ConfigError
from vlm.training.optim import make_optimizer, rate_factor, rates_by_part, set_rates

STAGE = StageConfig(name="x", dataset="x", lr=LearningRates(connector=1e-3), warmup_ratio=0.0)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(2, 3)
        self.connector = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.language = nn.Linear(4, 5, bias=False)


def test_each_part_gets_its_rate_and_one_dimensional_weights_no_decay():
    model = Parts()
    stage = replace(STAGE, lr=LearningRates(vision=1e-5, connector=1e-3, language=2e-5), weight_decay=0.1)
    optimizer = make_optimizer(model, stage)
    seen = {id(weight): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for weight in group["params"]}
    for part, rate in {"vision": 1e-5, "connector": 1e-3, "language": 2e-5}.items():
        for weight in getattr(model, part).parameters():
            assert seen[id(weight)] == (rate, 0.1 if weight.ndim == 2 else 0.0)
    assert len(seen) == len(list(model.parameters()))
    assert rates_by_part(optimizer) == {"vision": 1e-5, "connector": 1e-3, "language": 2e-5}
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)


def test_parts_without_a_rate_are_in_no_group():
    model = Parts()
    (matrix, vectors) = make_optimizer(model, STAGE).param_groups
    assert {id(w) for w in [*matrix["params"], *vectors["params"]]} == {id(w) for w in model.connector.parameters()}


def test_a_rate_for_a_part_without_trainable_weights_is_refused():
    model = Parts()
    model.connector = nn.Identity()
    with pytest.raises(ConfigError, match=r"--stage.lr.connector is set, but the part 'connector' has no trainable weight"):
        make_optimizer(model, STAGE)


def test_cosine_is_transformers_cosine_after_the_warm_up():
    stage = replace(STAGE, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=50).lr_lambdas[0]
    assert [rate_factor(step, stage, 50) for step in range(5, 51)] == pytest.approx([theirs(step) for step in range(5, 51)])


def test_warm_up_rises_linearly_from_the_first_step_and_reaches_the_peak():
    stage = replace(STAGE, warmup_ratio=0.03)  # 3 % of 100 steps: a quarter, half, three quarters, the peak
    assert [rate_factor(step, stage, 100) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_single_step_has_the_peak_rate_without_warm_up(schedule):
    assert rate_factor(0, replace(STAGE, schedule=schedule), 1) == 1.0


def test_cosine_ends_at_the_final_rate():
    stage = replace(STAGE, final_lr_ratio=0.1)
    assert rate_factor(0, stage, 10) == 1.0
    assert rate_factor(5, stage, 10) == pytest.approx(0.55)
    assert rate_factor(9, stage, 10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.9 * math.pi)) / 2)
    assert rate_factor(10, stage, 10) == pytest.approx(0.1)


def test_wsd_is_flat_then_linear():
    stage = replace(STAGE, schedule="wsd", decay_ratio=0.4, final_lr_ratio=0.2)
    assert [rate_factor(step, stage, 10) for step in range(11)] == pytest.approx([1] * 7 + [0.8, 0.6, 0.4, 0.2])


def test_wsd_without_decay_stays_flat_to_the_end():
    assert [rate_factor(step, replace(STAGE, schedule="wsd", decay_ratio=0.0), 4) for step in range(5)] == [1.0] * 5


def test_constant_is_constant():
    assert {rate_factor(step, replace(STAGE, schedule="constant"), 9) for step in range(10)} == {1.0}


def test_schedule_scales_every_group_alike():
    stage = replace(STAGE, lr=LearningRates(vision=1e-5, connector=1e-3))
    optimizer = make_optimizer(Parts(), stage)
    set_rates(optimizer, stage, 6, 10)
    assert rates_by_part(optimizer) == pytest.approx({"vision": 0.5e-5, "connector": 0.5e-3})

import math

import pytest
import torch

from vlm.evaluate.bootstrap import with_intervals


def test_interval_of_a_share_is_the_binomial_one_and_depends_on_the_seed_alone():
    hits = (torch.arange(400) < 120).double()
    metrics = lambda i: {"share": hits[i].mean().item(), "none": math.nan}  # noqa: E731
    score = with_intervals(metrics, 400, {"share": 0.1, "none": math.nan}, seed=3)["share"]
    error = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert (score.value, score.chance) == (pytest.approx(0.3), 0.1)
    assert score.low == pytest.approx(0.3 - error, abs=0.01) and score.high == pytest.approx(0.3 + error, abs=0.01)
    again = with_intervals(metrics, 400, {"share": 0.1, "none": math.nan}, seed=3)
    assert again["share"] == score and math.isnan(again["none"].value) and math.isnan(again["none"].low)


def test_draws_that_do_not_define_a_metric_are_left_out_of_its_interval():
    wanted = torch.tensor([True, False, False, False])  # a third of the draws have nothing to recall
    metrics = lambda i: {"recall": 1.0 if wanted[i].any() else math.nan}  # noqa: E731
    score = with_intervals(metrics, 4, {"recall": 0.5}, resamples=50)["recall"]
    assert (score.value, score.low, score.high) == (1, 1, 1)

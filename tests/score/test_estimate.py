"""The arithmetic of an estimate, and that a sample is measured without anything being written."""

import pytest
from tiny_scores import job, some_pairs

from vlm.commands.score import estimate_in_words
from vlm.score.estimate import Estimate, days, measure
from vlm.score.opening import open_job


def test_a_hundred_million_pairs_at_a_tenth_of_a_second_are_116_days():
    """The published table: 0.1 s a pair, 115.74 days."""
    assert days(100_000_000, 1 / 0.1) == pytest.approx(115.74, abs=0.005)


def test_days_and_cost_are_said():
    words = estimate_in_words(Estimate(100_000_000, 512, 100, 512, seconds=51.2, ram_gb=1.5, gpu_gb=2.0, price_per_hour=2.0))
    assert "10.0 pairs/s" in words
    assert "1.50 GB of memory, 2.00 GB on the GPU" in words
    assert "115.74 days, 5,555.56 at 2 an hour" in words


@pytest.mark.parametrize("rows, timed", [(30, 20), (8, 8)])
def test_the_rows_behind_the_first_ones_are_timed(tmp_path, rows, timed):
    opened = open_job(job(some_pairs(tmp_path, rows=rows), tmp_path / "scores.parquet"))
    before = sorted(tmp_path.iterdir())
    with opened.scorer:
        found = measure(opened, 1000, sample=20, warm_up=10)
    assert (found.sample, found.images, found.texts, found.pairs) == (timed, 3, 4, 1000)  # those of the first rows are encoded again
    assert found.seconds > 0
    assert found.ram_gb > 0.05
    assert sorted(tmp_path.iterdir()) == before

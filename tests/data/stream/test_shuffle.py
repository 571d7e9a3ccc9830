"""Permutations: nothing lost, nothing twice, no place preferred."""

import time

import numpy as np
import pytest

from vlm.data.stream.shuffle import Shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 100_000])
def test_every_number_stands_at_one_place(size: int):
    assert sorted(Shuffle(size, 3, 1)(np.arange(size)).tolist()) == list(range(size))


def test_any_stretch_is_computed_alone():
    shuffle = Shuffle(10_000, 7)
    assert shuffle(np.arange(5_000, 5_100)).tolist() == shuffle(np.arange(10_000))[5_000:5_100].tolist()


def test_every_part_of_the_key_changes_the_order():
    orders = {tuple(Shuffle(50, *key)(np.arange(50)).tolist()) for key in [(1, 2), (2, 1), (1, 3), (1,), (1, 2, 3)]}
    assert len(orders) == 5


def test_permutations_of_many_rounds_are_looked_up_at_once():
    shuffle = Shuffle(50, 7)
    rounds = np.repeat(np.arange(20), 50)
    table = shuffle(np.tile(np.arange(50), 20), rounds).reshape(20, 50)
    assert all(sorted(row) == list(range(50)) for row in table.tolist())
    assert len({tuple(row) for row in table.tolist()}) == 20
    assert table[3].tolist() == shuffle(np.arange(50), 3).tolist()


def test_every_number_comes_to_every_place_equally_often():
    counts = np.zeros((6, 6))
    for key in range(6_000):
        counts[np.arange(6), Shuffle(6, key)(np.arange(6))] += 1
    chi2 = ((counts - 1_000) ** 2 / 1_000).sum()
    assert chi2 < 60  # 25 degrees of freedom: 60 is exceeded once in 10,000 fair shuffles


def test_neighbors_do_not_stay_neighbors():
    order = Shuffle(100_000, 5)(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) == 1).mean() < 1e-4


def test_a_far_stretch_of_a_billion_takes_milliseconds():
    start = time.perf_counter()
    Shuffle(10**9, 1)(np.arange(500_000_000, 500_004_096))
    assert time.perf_counter() - start < 0.1

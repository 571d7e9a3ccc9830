"""The best rows by radix passes, against sorting."""

import numpy as np
import pytest

from vlm.score.ranking import edge_of, keys_of, occurrences


def best_by_sorting(groups: np.ndarray, scores: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(scores), dtype=bool)
    for group, quota in enumerate(quotas):
        rows = np.flatnonzero(groups == group)
        kept[rows[np.argsort(-scores[rows], kind="stable")[:quota]]] = True
    return kept


@pytest.mark.parametrize("num_groups", [1, 2, 37])
@pytest.mark.parametrize("distinct", [3, 10**6], ids=["ties", "no ties"])
def test_the_best_of_each_group_are_those_of_a_stable_sort_whatever_the_pieces(num_groups, distinct):
    random = np.random.default_rng(3)
    scores = ((random.integers(0, distinct, 3_000) - distinct // 3) / distinct).astype(np.float32)
    groups = random.integers(0, num_groups, len(scores))
    quotas = np.array([random.integers(1, (groups == group).sum() + 1) for group in range(num_groups)])
    keys = keys_of(scores)

    def parts():
        return ((groups[start : start + 700], keys[start : start + 700]) for start in range(0, len(scores), 700))

    edge = edge_of(parts, quotas)
    kept = np.concatenate([edge.keeps(*part) for part in parts()])
    assert np.array_equal(kept, best_by_sorting(groups, scores, quotas))


def test_keys_have_the_order_of_the_scores():
    scores = np.array([-np.inf, -2.5, -1e-30, 0.0, 1e-30, 0.3, 0.30000001, 1.0, np.inf], dtype=np.float32)
    keys = keys_of(scores)
    assert (np.diff(keys.astype(np.int64)) >= 0).all() and keys[0] < keys[1] < keys[2] < keys[3] < keys[4] < keys[5]
    assert keys_of(np.array([-0.0], dtype=np.float32)) == keys_of(np.array([0.0], dtype=np.float32))


def test_occurrences_count_equal_values_before():
    assert occurrences(np.array([4, 2, 4, 4, 2])).tolist() == [0, 0, 1, 2, 1]
    assert occurrences(np.array([], dtype=np.int64)).tolist() == []

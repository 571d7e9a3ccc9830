import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from vlm.color.associations import read_ratings
from vlm.color.colors import UW71, open_colors
from vlm.color.discriminability import (
    assign,
    assign_apart,
    capacity,
    merits,
    pairwise_distances,
    semantic_contrast,
    semantic_distances,
    specificity,
)
from vlm.errors import ConfigError


def rated(*concepts):
    return read_ratings().of(concepts).values


@pytest.mark.parametrize(
    ("concepts", "total_variation", "distance"),
    [(("mango", "watermelon"), 0.2392, 0.9691), (("apple", "banana"), 0.2707, 0.9987), (("comfort", "safety"), 0.0610, 0.4387)],
)
def test_capacity_and_largest_semantic_distance_of_two_concepts(concepts, total_variation, distance):
    one, other = rated(*concepts)
    assert capacity(rated(*concepts)) == pytest.approx(total_variation, abs=5e-5)
    assert 0.5 * np.abs(one / one.sum() - other / other.sum()).sum() == pytest.approx(capacity(rated(*concepts)))
    assert semantic_distances(one, other).max() == pytest.approx(distance, abs=5e-5)


def test_capacity_of_four_concepts():
    assert capacity(rated("apple", "banana", "grape", "peach")) == pytest.approx(0.7406, abs=5e-5)
    assert capacity(rated("driving", "leisure", "sleeping", "working")) == pytest.approx(0.2546, abs=5e-5)
    assert capacity(np.eye(4)) == 3 and capacity(np.ones((4, 7))) == pytest.approx(0)


def test_semantic_distance_is_the_formula():
    x1, x2, x3, x4 = 0.9, 0.3, 0.2, 0.6
    sigma = math.sqrt(sum((1.4 * x * (1 - x)) ** 2 for x in (x1, x2, x3, x4)))
    expected = abs(2 * norm.cdf(((x1 + x4) - (x2 + x3)) / sigma) - 1)
    found = semantic_distances(np.array([x1, x2]), np.array([x3, x4]))
    assert found[0, 1] == pytest.approx(expected) and found == pytest.approx(found.T) and found[0, 0] == 0
    floored = semantic_distances(np.array([1.0, 0]), np.array([0, 1.0]), floor=0.1)
    assert floored[0, 1] == pytest.approx(2 * norm.cdf(2 / 0.2) - 1)
    assert semantic_distances(np.array([1.0, 0]), np.array([0, 1.0]))[0, 1] == 1  # no spread at all


def test_contrast_of_two_concepts_is_the_probability_behind_their_semantic_distance():
    palette = np.array([[0.7, 0.4], [0.5, 0.6]])
    distance = semantic_distances(palette[0], palette[1])[0, 1]
    found = semantic_contrast(palette, draws=20000)
    assert found == pytest.approx([(1 + distance) / 2] * 2, abs=0.01)
    assert np.array_equal(semantic_contrast(palette, draws=50, seed=3), semantic_contrast(palette, draws=50, seed=3))


def test_balanced_assignment_avoids_colors_that_go_with_other_concepts():
    associations = np.array([[0.9, 0.6, 0.1], [0.8, 0.1, 0.5]])  # both go with the first color
    assert merits(associations) == pytest.approx(np.array([[0.1, 0.5, -0.4], [-0.1, -0.5, 0.4]]))
    assert assign(associations).tolist() == [1, 2]
    assert assign(associations, "isolated").tolist() == [0, 2]
    with pytest.raises(ConfigError, match="balanced, isolated or baseline; got 'best'"):
        merits(associations, "best")


def test_merit_of_three_concepts_is_less_the_strongest_other():
    associations = np.random.default_rng(0).random((3, 5))
    expected = [[associations[i, j] - max(associations[k, j] for k in range(3) if k != i) for j in range(5)] for i in range(3)]
    assert merits(associations) == pytest.approx(np.array(expected))


def test_too_few_colors_are_refused():
    with pytest.raises(ConfigError, match="3 concepts need at least as many colors; there are 2"):
        assign(np.ones((3, 2)))


def test_colors_that_look_alike_are_not_chosen_together():
    associations, distances = np.array([[0.9, 0.8, 0.5], [0.1, 0.7, 0.3]]), np.array([[0.0, 2, 60], [2, 0, 60], [60, 60, 0]])
    assert assign_apart(associations, distances, 0.0).tolist() == [0, 1]
    assert assign_apart(associations, distances, 10.0).tolist() == [0, 2]
    with pytest.raises(ConfigError, match="No 2 of 3 colors differ by 100"):
        assign_apart(associations, distances, 100.0)


@pytest.mark.parametrize("kind", ["balanced", "isolated", "baseline"])
def test_assignment_is_the_best_of_all(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        table, places = rng.random((4, 8)), 50 * rng.random((8, 3))
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)

        def merit(i, j, x=table):
            strongest = max(x[k, j] for k in range(4) if k != i)
            return {"balanced": x[i, j] - strongest, "isolated": x[i, j], "baseline": -abs(x[i, j] - strongest)}[kind]

        def worth(chosen, merit=merit):
            return sum(merit(i, j) for i, j in enumerate(chosen))

        for least in (0.0, 20.0, 25.0):
            apart = [
                chosen
                for chosen in itertools.permutations(range(8), 4)
                if all(distances[a, b] >= least for a, b in itertools.combinations(chosen, 2))
            ]
            assert worth(assign_apart(table, distances, least, kind)) == pytest.approx(max(map(worth, apart)))
        assert worth(assign(table, kind)) == pytest.approx(max(map(worth, itertools.permutations(range(8), 4))))


def test_palette_of_colors_far_apart_is_found_where_there_is_one():
    ratings, distances = rated("apple", "banana", "grape", "carrot", "mushroom"), open_colors(UW71).distances()
    chosen = assign_apart(ratings, distances, 80.0)
    assert (distances[np.ix_(chosen, chosen)] + 1e3 * np.eye(5)).min() >= 80
    assert merits(ratings)[np.arange(5), chosen].sum() > 1.0  # a search that only takes colors out ends without a palette here


def test_a_pair_in_the_wrong_order_has_no_distance():
    assert pairwise_distances(np.array([[0.2, 0.8], [0.8, 0.2]])).tolist() == [[0, 0], [0, 0]]


def test_specificity_goes_from_all_colors_to_one():
    assert specificity(np.array([[1.0, 1, 1, 1], [0, 0, 1, 0]])) == pytest.approx([-math.log(4), 0])

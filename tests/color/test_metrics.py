import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from vlm.color.associations import Associations, read_ratings
from vlm.color.colors import UW71, open_colors
from vlm.color.metrics import (
    aligned,
    distribution,
    earth_movers,
    jensen_shannon,
    normalized_scores,
    raw_scores,
    unrated,
    with_others,
)
from vlm.errors import ConfigError, DataFormatError


def table(*rows, concepts=("a", "b", "c", "d")):
    values = np.array(rows, dtype=float)
    return Associations(concepts[: len(rows)], tuple(map(str, range(1, values.shape[1] + 1))), values, "test")


def random_distributions(count, seed=0):
    values = np.random.default_rng(seed).random((2, count)) ** 3
    return values / values.sum(1, keepdims=True)


def test_raw_metrics_of_a_hand_worked_row():
    scores = raw_scores(table([0.0, 0.5, 1.0]), table([0.2, 0.3, 0.1]))
    # deviations (-.5, 0, .5) and (0, .1, -.1): r = -.05 / sqrt(.5 * .02); ranks (1, 2, 3) and (2, 3, 1): rho = -.5
    assert scores.column("PCC")["a"] == pytest.approx(-0.05 / math.sqrt(0.5 * 0.02))
    assert scores.column("SRC")["a"] == pytest.approx(-0.5)
    assert scores.column("TV")["a"] == pytest.approx(0.5 * (0.2 + 0.2 + 0.9))
    assert scores.column("EMD")["a"] == pytest.approx((0.1 + 0.3 + 0.7) / 3)  # sorted values against sorted values
    gt, predicted = 0.5 * math.log(0.5), sum(x * math.log(x) for x in (0.2, 0.3, 0.1))
    assert scores.column("ED")["a"] == pytest.approx(abs(gt - predicted))  # 0 ln 0 and 1 ln 1 are 0


def test_csv_of_metrics_is_that_of_pandas():
    pandas = pytest.importorskip("pandas")
    scores = raw_scores(table([0.0, 0.5, 1.0]), table([0.2, 0.3, 0.1]))
    frame = pandas.DataFrame({"word": ["a"], **{name: [scores.mean(name)] for name in scores.names}})
    assert list(frame.columns) == ["word", "PCC", "SRC", "TV", "EMD", "ED"] and scores.as_csv() == frame.to_csv()


def test_perfect_predictions_are_at_the_ends_of_all_normalized_metrics():
    ratings, distances = read_ratings(), open_colors(UW71).distances()
    shifted = Associations(ratings.concepts, ratings.colors, ratings.values - ratings.values.min(1, keepdims=True), "test")
    scores = normalized_scores(shifted, Associations(shifted.concepts, shifted.colors, 0.2 + 0.05 * shifted.values, "m"), distances)
    assert [scores.mean(name) for name in scores.names] == pytest.approx([1, 1, 0, 0, 0, 0], abs=1e-6)


def test_earth_movers_distance_of_colors_on_a_line_is_the_closed_form():
    places = np.sort(np.random.default_rng(1).random(30)) * 100
    g, p = random_distributions(30)
    expected = wasserstein_distance(places, places, g, p)
    assert earth_movers(g, p, np.abs(places[:, None] - places[None])) == pytest.approx(expected, abs=1e-9)


def test_earth_movers_distance_of_single_colors_is_their_delta_e():
    distances = open_colors(UW71).distances()
    g, p = np.eye(71)[3], np.eye(71)[40]
    assert earth_movers(g, p, distances) == pytest.approx(distances[3, 40])
    assert earth_movers(g, g, distances) == 0


def test_jensen_shannon_is_scipys():
    g, p = random_distributions(71)
    assert jensen_shannon(g, p) == pytest.approx(jensenshannon(g, p, base=2) ** 2)
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(1)


def test_distributions_of_scores():
    row = np.array([0.1, 0.2, 0.4])
    assert distribution(row) == pytest.approx([0, 0.25, 0.75])
    assert distribution(row, "softmax", 10.0) == pytest.approx(np.exp([1, 2, 4]) / np.exp([1, 2, 4]).sum())
    assert distribution(np.ones(4)) == pytest.approx([0.25] * 4)
    with pytest.raises(ConfigError, match=r"needs the scale .* --scale"):
        distribution(row, "softmax")
    for wrong in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"--scale is .* above 0"):
            distribution(row, "softmax", wrong)
    with pytest.raises(ConfigError, match="min-shift or softmax; got 'sum'"):
        distribution(row, "sum")


def test_constant_predictions_have_no_correlation():
    scores = raw_scores(table([0.0, 0.5, 1.0]), table([0.2, 0.2, 0.2]))
    assert math.isnan(scores.mean("PCC")) and math.isnan(scores.mean("SRC")) and scores.mean("TV") > 0


def test_columns_are_matched_by_name_and_concepts_without_ratings_left_out():
    predictions = Associations(("x", "b"), ("2", "1", "3"), np.array([[9.0, 9, 8], [2, 1, 3]]), "m")
    scores = raw_scores(table([0.0, 0, 1], [1, 2, 3]), predictions)
    assert list(scores.by_concept) == ["b"] and scores.mean("PCC") == pytest.approx(1)
    with pytest.raises(DataFormatError, match="None of the 1 concepts of m is rated in test: x"):
        raw_scores(table([0.0, 1]), Associations(("x",), ("1", "2"), np.array([[0.0, 1]]), "m"))


def test_concepts_are_matched_in_other_spellings_and_colors_must_be_there():
    ratings = table([0.0, 0, 1], [1, 2, 3], concepts=("ice cream", "b"))
    own, theirs = aligned(ratings, table([3.0, 1, 2], [5, 6, 7], concepts=("B", "Ice  Cream")))
    assert own.concepts == theirs.concepts == ("b", "ice cream") and theirs.values.tolist() == [[3, 1, 2], [5, 6, 7]]
    assert unrated(ratings, table([1.0, 2, 3], [1, 2, 3], concepts=("B", "love"))) == ["love"]
    with pytest.raises(DataFormatError, match=r"test has the concept 'b' twice, in other spellings"):
        aligned(ratings, table([1.0, 2, 3], [1, 2, 3], concepts=("b", "B")))
    with pytest.raises(DataFormatError, match=r"test has 2 colors and no '3', which is rated in test"):
        aligned(ratings, table([1.0, 2], concepts=("b",)))


def test_correlations_are_those_of_the_scores_whatever_distribution_is_made_of_them():
    ratings, scores, distances = table([0.0, 0.5, 1.0]), table([0.2, 0.3, 0.1]), np.ones((3, 3)) - np.eye(3)
    expected = raw_scores(ratings, scores)
    for method, scale in (("min-shift", None), ("softmax", 50.0)):
        found = normalized_scores(ratings, scores, distances, method=method, scale=scale)
        assert (found.mean("PCC"), found.mean("SRC")) == (expected.mean("PCC"), expected.mean("SRC"))


def test_control_is_the_correlation_with_the_other_concepts():
    ratings = table([0.0, 1, 0], [0, 0, 1])
    assert with_others(ratings, ratings) == pytest.approx(np.corrcoef([0, 1, 0], [0, 0, 1])[0, 1])
    same_for_all = table([0.1, 0.2, 0.4], [0.1, 0.2, 0.4])
    assert with_others(ratings, same_for_all) == pytest.approx(raw_scores(ratings, same_for_all).mean("PCC"))


def test_ratings_that_are_all_zero_are_refused():
    with pytest.raises(DataFormatError, match="ratings of 'a' are all 0"):
        normalized_scores(table([0.0, 0.0]), table([0.1, 0.2]), np.zeros((2, 2)))

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from vlm.color.associations import Associations, read_ratings
from vlm.color.colors import UW71, Colors, hex_to_lab, open_colors
from vlm.color.layout import Prediction
from vlm.color.prompts import ABSTRACT, CONCEPTS, OBJECTS, make_prompts
from vlm.color.report import bars, compare, concreteness_trend, means_row, render, underestimated

COLORS = open_colors(UW71)


def prediction(model="m", style=1, noise=0.3, concepts=CONCEPTS):
    people = read_ratings().of(concepts)
    values = people.values + noise * np.random.default_rng(style).normal(size=people.values.shape)
    return Prediction(model, style, replace(people, values=values, source=model), scale=10.0)


def page(*predictions, concreteness=OBJECTS | ABSTRACT):
    return render(predictions, read_ratings(), COLORS, concreteness)


VOID = {"meta"}


class Balance(HTMLParser):
    """Notes tags that are closed in another order than they were opened."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)


def test_page_has_every_part_and_loads_nothing():
    text = page(prediction("ViT-B/32", 1), prediction("ViT-B/32", 2), prediction("<b>", 1))
    for heading in ("Means over concepts", "Models and prompts, by concept", "Severely underestimated colors", "Concreteness"):
        assert f"<h2>{heading}</h2>" in text
    for concept in CONCEPTS:
        assert f'id="{concept}"' in text
    assert text.count('fill="#ea1d1e"') == 20 * (1 + 3 * 2)  # people's bars; bars and ranks of each prediction
    assert "<b>, style" not in text and "&lt;b&gt;, style 1" in text
    assert not re.search(r"https?://", text)
    balance = Balance()
    balance.feed(text)
    assert not balance.wrong and not balance.open


def test_control_and_groups_stand_beside_the_means():
    row = means_row(compare(prediction(noise=0.0), read_ratings(), COLORS), OBJECTS | ABSTRACT)
    assert row["PCC"] == pytest.approx(1) and row["objects"] == pytest.approx(1) and row["abstract"] == pytest.approx(1) and row["others"] < 0.3


def test_softmax_takes_the_scale_of_the_prediction():
    ours = compare(prediction(), read_ratings(), COLORS, method="softmax")
    given = compare(replace(prediction(), scale=None), read_ratings(), COLORS, method="softmax", scale=10.0)
    assert ours.normalized.by_concept == given.normalized.by_concept


def test_trend_is_pearsons_r():
    r, p = concreteness_trend({"a": 0.1, "b": 0.2, "c": 0.6, "d": math.nan}, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    assert r == pytest.approx(np.corrcoef([1, 2, 3], [0.1, 0.2, 0.6])[0, 1]) and 0 < p < 1
    assert all(map(math.isnan, concreteness_trend({"a": 0.1, "b": 0.2}, {"a": 1.0, "b": 2.0})))


def test_bars_are_sorted_and_start_at_zero_or_below_the_least_score():
    three = Colors(("1", "2", "3"), hex_to_lab(["#ff0000", "#00ff00", "#0000ff"]))
    assert bars(np.array([0.2, 0.8, 0.4]), three, from_zero=True) == [(1.0, "#00ff00"), (0.5, "#0000ff"), (0.25, "#ff0000")]
    heights = [height for height, _ in bars(np.array([0.20, 0.22, 0.21]), three, from_zero=False)]
    assert heights[0] == 1 and heights[1] == pytest.approx(0.52, abs=0.01) and 0 < heights[2] < 0.05


def test_reversed_predictions_underestimate_the_colors_that_people_rate_highest():
    people = read_ratings().of(CONCEPTS)
    reverse = Prediction("reverse", 1, Associations(people.concepts, people.colors, 1 - people.values, "reverse"))
    rows = underestimated([compare(reverse, read_ratings(), COLORS)], COLORS)
    counts = np.zeros(71)
    for row in people.values:
        counts[np.argsort(-row, kind="stable")[:17]] += 1
    assert rows[0]["total"] == counts.max() and len(rows) == 12


def test_names_of_colors_and_unrated_concepts_are_handled():
    names = make_prompts(5).concepts
    scores = Associations(names, COLORS.names, np.random.default_rng(0).random((len(names), 71)), "m")
    text = page(Prediction("m", 5, scores))
    assert "Names of colors: m, style 5" in text and "Means over concepts" not in text
    assert "fewer than 3 concepts with a concreteness" in page(prediction(concepts=("apple", "love")))


def test_constant_scores_are_shown_as_undefined():
    flat = replace(prediction(), scores=replace(prediction().scores, values=np.full((20, 71), 0.2)))
    text = page(flat)
    assert "\N{EN DASH}" in text and "m, style 1: no correlation, and so no mean, because all values are equal for apple" in text
    assert set(re.findall(r'cy="([\d.]+)" r="2"', text)) == {"36.00"}  # all share the middle rank
    assert bars(np.full(71, 0.2), COLORS, from_zero=False)[0][0] == bars(np.full(71, 0.2), COLORS, from_zero=False)[-1][0] == 1


def test_ranks_of_two_colors_fill_the_square_that_71_do():
    two = Associations(("a",), ("1", "2"), np.array([[0.1, 0.9]]), "two")
    text = render([Prediction("m", 0, two)], two, COLORS.named(["1", "2"]), {})
    assert re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="2"', text) == [("24.00", "48.00"), ("48.00", "24.00")]
    assert 'viewBox="-9 -3 83 83"' in text and "1 concept, 2 colors, 1 prediction;" in text


def test_concepts_that_nobody_rated_are_named():
    people = read_ratings().of(["apple", "banana", "love"])
    own = Prediction("m", 1, replace(people, concepts=("Apple", "BANANA", "froth"), source="m"))
    text = page(own)
    assert "m, style 1: nobody rated froth; left out." in text and 'id="apple"' in text and "2 concepts, 71 colors, 1 prediction;" in text


def test_colors_that_nobody_rated_are_named():
    people = read_ratings().of(["apple", "banana", "love"])
    more = replace(people, colors=(*people.colors, "72", "73"), values=np.hstack([people.values, np.ones((3, 2))]), source="m")
    compared = compare(Prediction("m", 1, more), people, COLORS)
    assert compared.notes == ["m, style 1: of its colors nobody rated 72, 73; left out."]
    assert compared.normalized == compare(Prediction("m", 1, people), people, COLORS).normalized

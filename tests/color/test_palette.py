from dataclasses import replace

import numpy as np
import pytest

from vlm.color.associations import Associations, read_ratings
from vlm.color.colors import UW71, Colors, hex_to_lab, open_colors
from vlm.color.palette import Observers, given_palette, make_palette, pairs, peaks
from vlm.errors import ConfigError, DataFormatError

LIBRARY = Colors(("red", "green", "blue"), hex_to_lab(["#ff0000", "#00ff00", "#0000ff"]))


def associations(*rows):
    return Associations(("a", "b", "c")[: len(rows)], LIBRARY.names, np.array(rows), "test")


def test_clear_concepts_get_their_colors_and_are_read_right():
    palette = make_palette(associations([0.95, 0.02, 0.02], [0.02, 0.02, 0.95]), LIBRARY, Observers())
    assert [(row.concept, row.color, row.hex, row.rival) for row in palette.rows] == [("a", "red", "#ff0000", "b"), ("b", "blue", "#0000ff", "a")]
    assert palette.mean_contrast == 1 and palette.chance == 0.5 and palette.rows[0].least_distance > 0.99
    assert palette.least_delta_e == pytest.approx(176.3, abs=0.5)  # red and blue of sRGB


def test_concepts_alike_are_read_at_chance():
    palette = make_palette(associations([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]), LIBRARY, Observers(draws=4000))
    assert palette.mean_contrast == pytest.approx(0.5, abs=0.03) and palette.capacity == pytest.approx(0) and palette.rows[0].least_distance == 0


def test_palette_of_five_fruits_is_read_well_and_better_than_a_shuffled_one():
    ratings, colors = read_ratings().of(["apple", "banana", "grape", "carrot", "mushroom"]), open_colors(UW71)
    best = make_palette(ratings, colors, Observers(draws=300), min_delta_e=20.0)
    assert best.mean_contrast > 0.9 and best.least_delta_e >= 20
    names = [row.color for row in best.rows]
    shuffled = given_palette(ratings, colors, names[1:] + names[:1], Observers(draws=300))
    assert shuffled.mean_contrast < 0.1


def test_one_concept_has_no_rival():
    (row,) = make_palette(associations([0.1, 0.9, 0.3]), LIBRARY, Observers()).rows
    assert row.color == "green" and row.rival == "" and row.contrast == 1 and np.isnan(row.least_distance)


def test_pairs_put_the_hardest_first_and_give_each_concept_its_color():
    found = pairs(associations([0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.2, 0.8, 0.2]), LIBRARY)
    assert (found[0].one, found[0].other) == ("b", "c")
    of_a_and_b = next(row for row in found if (row.one, row.other) == ("a", "b"))
    assert of_a_and_b.colors == ("red", "green") and of_a_and_b.hexes == ("#ff0000", "#00ff00")


def test_peaks_are_named():
    assert peaks(associations([1.0, 0, 0], [0.5, 0.5, 0.5])) == pytest.approx({"a": 0, "b": -np.log(3)})


def test_wrong_requests_are_refused():
    table = associations([0.9, 0.1, 0.2], [0.1, 0.9, 0.2])
    with pytest.raises(ConfigError, match="2 concepts and 1 colors"):
        given_palette(table, LIBRARY, ["red"], Observers())
    with pytest.raises(DataFormatError, match="No color is named 'pink'"):
        given_palette(table, LIBRARY, ["red", "pink"], Observers())
    with pytest.raises(DataFormatError, match="expected 0 to 1"):
        make_palette(replace(table, values=table.values * 2), LIBRARY, Observers())
    with pytest.raises(ConfigError, match="--draws is from 1 to 1,000,000; got 0"):
        Observers(draws=0)
    with pytest.raises(ConfigError, match="--draws is from 1 to 1,000,000; got 100000000"):
        Observers(draws=100_000_000)
    with pytest.raises(ConfigError, match="--seed is not below 0; got -1"):
        Observers(seed=-1)
    for wrong in (-5.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--min-delta-e is a color difference, 0 or more"):
            make_palette(table, LIBRARY, Observers(), min_delta_e=wrong)

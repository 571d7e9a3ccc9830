import csv

import numpy as np
import pytest

from vlm.color.colors import UW71, UW71_FILE, delta_e, hex_to_lab, lab_to_rgb, open_colors, rgb_to_lab
from vlm.errors import DataFormatError


def published():
    with UW71_FILE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_uw71_has_the_published_rgb_and_hex():
    colors, rows = open_colors(UW71), published()
    assert colors.names == tuple(str(number) for number in range(1, 72))
    rgb = np.array([[float(row[f"{channel}_rgb"]) for channel in "rgb"] for row in rows])
    assert np.abs(lab_to_rgb(colors.lab) - rgb).max() < 2e-3  # the file rounds its matrix elsewhere
    differ = [(row["color_hex"], own) for row, own in zip(rows, colors.hexes, strict=True) if row["color_hex"] != own]
    assert differ == [("#e81a4b", "#e81b4b"), ("#608218", "#608219"), ("#ea1d1d", "#ea1d1e")]  # one step of one channel


def test_example_of_the_study_and_white_and_black():
    assert lab_to_rgb(np.array([[50.0, 28.891, -73.589]]))[0] == pytest.approx([0.18536, 0.43139, 0.96497], abs=2e-3)
    assert open_colors(UW71).named(["25", "29"]).hexes == ["#000000", "#ffffff"]


def test_rgb_goes_to_lab_and_back():
    rgb = np.random.default_rng(0).random((200, 3))
    assert np.abs(lab_to_rgb(rgb_to_lab(rgb)) - rgb).max() < 1e-3


def test_delta_e_is_euclidean_in_lab():
    assert delta_e(np.array([[50.0, 0, 0]]), np.array([[50.0, 3, 4], [60, 0, 0]])).tolist() == [[5.0, 10.0]]


def test_swatches_are_squares_of_one_color():
    red = open_colors(UW71).named(["63"]).swatches()[0]
    assert red.size == (224, 224) and red.getcolors() == [(224 * 224, (0xEA, 0x1D, 0x1E))]


@pytest.mark.parametrize(
    ("text", "names", "hexes"),
    [
        ("#ff0000\n00ff00\n", ("1", "2"), ["#ff0000", "#00ff00"]),
        ("name,hex\nbrand,#102030\n", ("brand",), ["#102030"]),
        ("0,0,0\n100,0,0\n", ("1", "2"), ["#000000", "#ffffff"]),
        ("L,a,b\n0,0,0\n", ("1",), ["#000000"]),
        ("name,r,g,b\nbrand,16,32,48\ngr\u00fcn,0,255,0\n", ("brand", "gr\u00fcn"), ["#102030", "#00ff00"]),
        ("teal\nRebeccaPurple\n#fff\n", ("1", "2", "3"), ["#008080", "#663399", "#ffffff"]),
        ("#008080\nRebeccaPurple\n100,0,0\n", ("1", "2", "3"), ["#008080", "#663399", "#ffffff"]),
        ("name,hex\nsea,teal\n", ("sea",), ["#008080"]),
    ],
)
def test_files_of_colors(tmp_path, text, names, hexes):
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    colors = open_colors(str(tmp_path / "own.csv"))
    assert colors.names == names and colors.hexes == hexes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("reddish\n", "'reddish' is no color; write it as #rrggbb or as a name of CSS"),
        ("#ff000080\n", "'#ff000080' is no color"),
        ("teal\n1,2\n", "has the line '1,2': expected lines `#rrggbb`, `teal` or `L,a,b`"),
        ("r,g,b\n0.5,0,1\n", "no whole number from 0 to 255"),
        ("r,g,b\n0,256,0\n", "no whole number from 0 to 255"),
        ("r,g,b\n0,nan,0\n", "no whole number from 0 to 255"),
        ("hue,r\n1,2\n", "expected L, a and b; r, g and b; or hex"),
        ("name,hex\na,#000000\na,#ffffff\n", "two colors named 'a'"),
        ("L,a,b\n120,0,0\n", "L outside of 0 to 100"),
        ("L,a,b\n1,0\n", "Line 2 of .* has 2 cells, its header 3"),
        ("0,x,0\n", "no number"),
    ],
)
def test_files_that_are_no_colors_are_refused(tmp_path, text, says):
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataFormatError, match=says):
        open_colors(str(tmp_path / "own.csv"))


def test_missing_file_and_missing_color_are_named():
    with pytest.raises(DataFormatError, match=r"nowhere\.csv cannot be read: No such file"):
        open_colors("nowhere.csv")
    with pytest.raises(DataFormatError, match="No color is named '72'"):
        open_colors(UW71).named(["72"])


def test_hex_to_lab_of_pure_red():
    assert hex_to_lab(["#ff0000"])[0] == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # the usual value for sRGB under D65

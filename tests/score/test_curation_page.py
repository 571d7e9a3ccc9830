"""Counts and examples of the page about a selection."""

import re

import numpy as np
import pytest
from PIL import Image
from score_files import write_scores

from vlm.evaluate.run_report import small_picture
from vlm.pages import filled
from vlm.score.curation_page import TEMPLATE, curation_values
from vlm.score.located import Pictures
from vlm.score.scores import open_scores
from vlm.score.selection import Rules, select


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """1,000 pairs of 20 pictures, one of which is broken; 40 pairs have no score, 10 are URLs."""
    folder = tmp_path_factory.mktemp("page")
    for i in range(20):
        Image.new("RGB", (30, 20), (12 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"broken")
    random = np.random.default_rng(5)
    rows = [
        {
            "image": f"{i % 20}.png" if i >= 10 else f"https://example.org/{i}",
            "caption": f"caption {i // 2} <b>",
            "cos": float(random.normal(0.2, 0.1)),
        }
        for i in range(960)
    ]
    rows += [{"image": "gone.png", "caption": "c", "status": "fetch_error", "error": "no such file"} for _ in range(40)]
    write_scores(folder / "s.parquet", rows)
    scores, rules = open_scores([str(folder)]), Rules(min_cos=0.0, drop_duplicates=True, same="caption", keep_top=0.5)
    selection = select(scores, rules, scratch=folder)
    return (
        scores,
        selection,
        curation_values(scores, rules, selection, pictures=Pictures(folder), out="best.jsonl", shrink=small_picture),
        np.array([row["cos"] for row in rows[:960]]),
    )


def test_histogram_and_tenths_count_every_scored_row_once(made):
    _, selection, values, cosines = made
    for counted in (values["bars"], values["tenths"]):
        assert sum(item["count"] for item in counted) == 960
        assert sum(item["kept"] for item in counted) == selection.num_kept
    assert max(bar["height"] for bar in values["bars"]) == 100 and 20 <= len(values["bars"]) <= 41
    assert [tenth["count"] for tenth in values["tenths"]] == pytest.approx([96] * 10, abs=3)
    borders = np.quantile(cosines, np.arange(1, 10) / 10, method="inverted_cdf")
    np.testing.assert_allclose([tenth["high"] for tenth in values["tenths"][:-1]], borders, atol=1.01e-4)


def test_examples_are_of_their_tenth_and_reason_and_the_same_each_time(made):
    scores, _, values, _ = made
    for tenth in values["tenths"]:
        assert len(tenth["cards"]) == 6
        assert all(tenth["low"] - 1e-6 <= card["cos"] <= tenth["high"] + 1e-6 for card in tenth["cards"])
    reasons = {group["reason"]: group for group in values["dropped"]}
    assert list(reasons) == ["without a score", "below the least cosine", "duplicates", "below the top share"]
    assert {card["said"] for card in reasons["without a score"]["cards"]} == {"no such file"}
    assert all(card["cos"] < 0 for card in reasons["below the least cosine"]["cards"])
    assert sum(group["count"] for group in values["dropped"]) == scores.num_rows - values["steps"][-1].left


def test_the_page_shows_pictures_and_says_what_it_cannot_show_and_loads_nothing(made):
    page = filled(TEMPLATE, made[2])
    assert page.count('<img src="data:image/png;base64,') > 40
    assert "There is no image file" in page and "caption 100 &lt;b&gt;" not in page.replace("&lt;", "") and "<b>caption" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_scores_that_are_all_equal_have_a_page(tmp_path):
    write_scores(tmp_path / "s.parquet", [{"image": "https://example.org/a", "caption": "b", "cos": 1.0}] * 3)
    scores, rules = open_scores([str(tmp_path)]), Rules(keep_top=0.5)
    values = curation_values(
        scores, rules, select(scores, rules, scratch=tmp_path), pictures=Pictures(tmp_path), out="o", shrink=lambda image, side: ("", False)
    )
    assert [bar["count"] for bar in values["bars"]] == [3] and "2 of 3 pairs kept" in filled(TEMPLATE, values)


def test_of_very_long_texts_the_page_shows_the_beginning_and_of_pictures_in_the_table_where_they_lay(tmp_path):
    write_scores(tmp_path / "s.parquet", [{"image": "sha256:0a", "caption": "word " * 100_000, "cos": 0.5}] * 3)
    scores, rules = open_scores([str(tmp_path)]), Rules(min_cos=0.0)
    values = curation_values(
        scores, rules, select(scores, rules, scratch=tmp_path), pictures=Pictures(tmp_path), out="o", shrink=lambda image, side: ("", False)
    )
    page = filled(TEMPLATE, values)
    assert "lay in the scored table itself" in page
    assert len(page) < 20_000 and "word word..." in page.replace("word wo...", "word word...")

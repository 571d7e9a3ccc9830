"""Mixtures: what the texts mean, and that each source gets exactly its part in every epoch."""

from collections import Counter

import numpy as np
import pytest

from vlm.data.stream.mixture import Draws, Entry, draws_an_epoch, mixture, parse_mixture
from vlm.errors import ConfigError


def test_texts_state_shares_or_passes():
    assert parse_mixture("a, b") == (Entry("a", passes=1.0), Entry("b", passes=1.0))
    assert parse_mixture("a:0.7,b@test:.3") == (Entry("a", share=0.7), Entry("b@test", share=0.3))
    assert parse_mixture("a:2x,b,my/data.json:0.5x") == (Entry("a", passes=2.0), Entry("b", passes=1.0), Entry("my/data.json", passes=0.5))
    assert parse_mixture("a:7,b:3") == (Entry("a", share=7.0), Entry("b", share=3.0))


def test_a_table_is_written_as_the_text_that_means_it():
    assert parse_mixture(mixture({"a": 0.7, "b@train": 0.3})) == (Entry("a", share=0.7), Entry("b@train", share=0.3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "No dataset is named"),
        (" , ", "No dataset is named"),
        ("a:0", "'a' is 0"),
        ("a:70%,b:30%", "'70%' is no amount of 'a'"),
        ("a:1,b:-1", "'-1' is no amount"),
        ("a:", "no amount"),
        ("a:1,a:2", "names 'a' twice"),
        ("a:0.5,b", "for some datasets and not"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        parse_mixture(text)


def test_shares_are_parts_of_all_rows_and_passes_multiples_of_their_own():
    assert draws_an_epoch(parse_mixture("a:0.7,b:0.3"), (900, 100)) == (700, 300)
    assert draws_an_epoch(parse_mixture("a:1,b:1,c:1"), (5, 3, 2)) == (4, 3, 3)
    assert draws_an_epoch(parse_mixture("a:2x,b:0.25x,c"), (10, 20, 30)) == (20, 5, 30)


def test_shares_of_tokens_give_long_rows_fewer_draws():
    # rows of a are four times as long: half of the tokens each means one row of a for four of b
    assert draws_an_epoch(parse_mixture("a:1,b:1"), (500, 500), weights=(400.0, 100.0)) == (200, 800)


def test_a_share_of_less_than_a_row_is_refused():
    with pytest.raises(ConfigError, match=r"share of 'b' in --stage\.dataset is less than one of 10 rows"):
        draws_an_epoch(parse_mixture("a:1,b:0.0001"), (5, 5))


def epochs(draws: Draws, count: int) -> list[list[int]]:
    return [draws.at(epoch, np.arange(len(draws))).tolist() for epoch in range(count)]


def test_without_amounts_every_row_comes_once_an_epoch_in_another_order():
    first, second = epochs(Draws((6, 4), (6, 4), 1), 2)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_every_epoch_has_exactly_the_stated_rows_of_each_source():
    for rows in epochs(Draws((100, 7), (60, 30), 1), 4):
        assert Counter(row < 100 for row in rows) == {True: 60, False: 30}


def test_a_source_is_gone_through_pass_after_pass():
    rows = [row for epoch in epochs(Draws((100, 7), (60, 30), 1), 5) for row in epoch]
    counts = Counter(rows)
    assert {counts[row] for row in range(100)} == {3}  # 5 x 60 draws of 100
    assert {counts[row] for row in range(100, 107)} <= {21, 22}  # 5 x 30 draws of 7


def test_sources_are_mixed_from_the_first_row_to_the_last():
    rows = np.array(epochs(Draws((10_000, 10_000), (7_000, 3_000), 3), 1)[0])
    for part in np.split(rows < 10_000, 10):
        assert 0.64 < part.mean() < 0.76


def test_any_stretch_is_drawn_alone():
    draws = Draws((100, 7), (60, 30), 1)
    assert draws.at(2, np.arange(40, 50)).tolist() == epochs(draws, 3)[2][40:50]

"""The same scores on a local Ray as by one process; and what is said without Ray."""

import sys

import pytest
from tiny_scores import job, rows_of, scored, some_pairs

from vlm.errors import MissingPackageError
from vlm.score.ray_engine import PartScorer, score_on_ray


def test_an_actor_scores_the_parts_that_it_is_sent_and_none_twice(tmp_path):
    """Without Ray: what an actor runs."""
    settings = job(some_pairs(tmp_path, rows=11), tmp_path / "scores.parquet", part_rows=2)
    actor = PartScorer(settings)
    assert actor({"part": [4]})["rows"] == [2]
    assert actor({"part": [1, 5]})["rows"] == [3]
    assert actor({"part": [1]})["rows"] == [0]
    assert actor.opened.parts.missing(6) == [0, 2, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_ray_scores_as_one_process(tmp_path):
    pytest.importorskip("ray")
    pairs = some_pairs(tmp_path, rows=11)
    outcome = score_on_ray(job(pairs, tmp_path / "ray.parquet", part_rows=2), actors=1)
    assert (outcome.rows, outcome.num_parts, outcome.statuses) == (11, 6, {"ok": 11})
    scored(job(pairs, tmp_path / "one.parquet"))
    ours, one = rows_of(tmp_path / "ray.parquet"), rows_of(tmp_path / "one.parquet")
    assert [row["row"] for row in ours] == list(range(11))
    assert [row["cos"] for row in ours] == pytest.approx([row["cos"] for row in one], abs=1e-5)
    assert score_on_ray(job(pairs, tmp_path / "ray.parquet", part_rows=2)).rows == 0


def test_a_missing_ray_is_named_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"vlm\[ray\]"):
        score_on_ray(job(some_pairs(tmp_path), tmp_path / "scores.parquet"))

"""The same scores on a local Ray as by one process; and what is said without Ray."""

import sys

import pytest
from tiny_scores import job, rows_of, scored, some_pairs

from vlm.__main__ import main as vlm
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


@pytest.fixture(scope="module")
def own_ray():
    """A Ray of these tests alone, which ends with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield (ray := pytest.importorskip("ray"))
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_ray_scores_as_one_process(tmp_path, own_ray):
    pairs = some_pairs(tmp_path, rows=11)
    outcome = score_on_ray(job(pairs, tmp_path / "ray.parquet", part_rows=2), actors=1)
    assert (outcome.rows, outcome.num_parts, outcome.statuses) == (11, 6, {"ok": 11})
    scored(job(pairs, tmp_path / "one.parquet"))
    ours, one = rows_of(tmp_path / "ray.parquet"), rows_of(tmp_path / "one.parquet")
    assert [row["row"] for row in ours] == list(range(11))
    assert [row["cos"] for row in ours] == pytest.approx([row["cos"] for row in one], abs=1e-5)
    assert score_on_ray(job(pairs, tmp_path / "ray.parquet", part_rows=2)).rows == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_scores_on_ray_what_is_missing(tmp_path, own_ray, capsys):
    pairs = some_pairs(tmp_path, rows=7)
    line = ["score", "--pairs", str(pairs), "--model", "tiny-clip", "--device", "cpu", "--precision", "fp32", "--part-rows", "3"]
    assert vlm([*line, "--out", str(tmp_path / "parts"), "--shard", "0/2"]) == 0
    assert "1 of 3 parts are still to be scored" in capsys.readouterr().out
    assert vlm([*line, "--out", str(tmp_path / "parts"), "--engine", "ray", "--actors", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 rows in" in said and "7 rows, 7 ok." in said
    found = [row for path in sorted((tmp_path / "parts").glob("*.parquet")) for row in rows_of(path)]
    assert [(row["row"], row["status"]) for row in found] == [(i, "ok") for i in range(7)]


def test_a_missing_ray_is_named_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"vlm\[ray\]"):
        score_on_ray(job(some_pairs(tmp_path), tmp_path / "scores.parquet"))

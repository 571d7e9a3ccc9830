"""Parts on disk: atomic, resumed, shared by shards, refused where other settings made them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from tiny_scores import job, json_lines, pictures, rows_of, scored, some_pairs

from vlm.errors import ConfigError, DataFormatError
from vlm.score import parts as parts_module
from vlm.score.opening import open_job
from vlm.score.parts import MANIFEST, Parts, read_facts, score_files
from vlm.score.running import Share, score_parts
from vlm.score.scores import open_scores
from vlm.types import World


def without_pairs(parts_folder):
    return sorted(path.name for path in parts_folder.glob("*"))


def test_parts_become_one_file_and_nothing_else_stays(tmp_path):
    pairs = some_pairs(tmp_path, rows=10)
    before = pairs.read_bytes(), pairs.stat().st_mtime_ns
    (tmp_path / "out").mkdir()
    outcome = scored(job(pairs, tmp_path / "out" / "scores.parquet", part_rows=4))
    assert (outcome.num_parts, outcome.rows, outcome.missing) == (3, 10, [])
    assert without_pairs(tmp_path / "out") == ["scores.parquet"]
    assert [row["row"] for row in rows_of(tmp_path / "out" / "scores.parquet")] == list(range(10))
    assert (pairs.read_bytes(), pairs.stat().st_mtime_ns) == before
    facts = read_facts(tmp_path / "out" / "scores.parquet")
    assert (facts["model"], facts["statuses"], facts["settings"]["dtype"]) == ("tiny-clip", {"ok": 10}, "float32")


def test_a_folder_keeps_its_parts_and_gets_a_manifest(tmp_path):
    pairs, out = some_pairs(tmp_path, rows=10), tmp_path / "scores"
    scored(job(pairs, out, part_rows=4))
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert (manifest["parts"], manifest["rows"], manifest["statuses"]) == (3, 10, {"ok": 10})
    assert [row["row"] for path in score_files(out) for row in rows_of(path)] == list(range(10))


def test_a_folder_that_is_not_finished_is_no_table(tmp_path):
    pairs, out = some_pairs(tmp_path, rows=10), tmp_path / "scores"
    scored(job(pairs, out, part_rows=4), Share(0, 2))
    with pytest.raises(DataFormatError, match=r"no finished table of scores: it holds 2 parts and no manifest\.json"):
        score_files(out)
    with pytest.raises(DataFormatError, match="Run `vlm score` to its end first"):
        open_scores([str(out)])
    assert open_scores([f"{out}/part-*.parquet"]).num_rows == 6


def test_a_finished_table_is_left_alone(tmp_path):
    settings = job(some_pairs(tmp_path), tmp_path / "scores.parquet")
    scored(settings)
    before = (tmp_path / "scores.parquet").stat().st_mtime_ns
    outcome = scored(settings)
    assert (outcome.rows, outcome.statuses, (tmp_path / "scores.parquet").stat().st_mtime_ns) == (0, {"ok": 10}, before)


@pytest.mark.parametrize("out", ["scores.parquet", "scores"])
def test_what_killed_processes_left_is_taken_away_in_the_end(tmp_path, out):
    settings = job(some_pairs(tmp_path), tmp_path / out, part_rows=5)
    parts = open_job(settings).parts
    for _ in range(2):  # while parts are missing, and beside a finished table
        parts.folder.mkdir(exist_ok=True)
        (parts.folder / "part-000000.parquet.host.1.tmp").write_bytes(b"half a part")
        assert scored(settings).statuses == {"ok": 10}
        assert not list(tmp_path.rglob("*.tmp"))
    assert parts.folder.exists() == (out == "scores")


def test_shards_share_the_parts_and_the_last_one_joins_them(tmp_path):
    settings = job(some_pairs(tmp_path, rows=11), tmp_path / "scores.parquet", part_rows=2)
    first = scored(settings, Share(1, 2))
    assert (first.rows, first.missing, first.num_parts) == (5, [0, 2, 4], 6)
    assert not (tmp_path / "scores.parquet").exists()
    last = scored(settings, Share(0, 2))
    assert (last.rows, last.missing, last.statuses) == (6, [], {"ok": 11})
    scored(job(tmp_path / "pairs.jsonl", tmp_path / "alone.parquet"))
    shared, alone = rows_of(tmp_path / "scores.parquet"), rows_of(tmp_path / "alone.parquet")
    assert [row["row"] for row in shared] == [row["row"] for row in alone]
    assert [row["cos"] for row in shared] == pytest.approx([row["cos"] for row in alone], abs=1e-5)


def test_finished_parts_are_not_scored_again(tmp_path):
    settings = job(some_pairs(tmp_path, rows=10), tmp_path / "scores.parquet", part_rows=2)
    scored(settings, Share(0, 2))
    folder = tmp_path / "scores.parquet.parts"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    (folder / "part-000001.parquet.other.1.tmp").write_bytes(b"what a killed process left")
    opened = open_job(settings)
    written = []
    inner = Parts.write
    with opened.scorer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "write", lambda self, index, batches: (written.append(index), inner(self, index, batches))[1])
        outcome = score_parts(opened)
    assert sorted(before) == ["part-000000.parquet", "part-000002.parquet", "part-000004.parquet"]
    assert written == [1, 3]
    assert (outcome.rows, outcome.statuses) == (4, {"ok": 10})


@pytest.mark.parametrize("changed", [{"part_rows": 3}, {"prefix": "A photo depicts "}, {"model": "tiny-siglip"}])
@pytest.mark.parametrize("finished", [True, False])
def test_parts_of_other_settings_are_refused_by_name(tmp_path, changed, finished):
    pairs, out = some_pairs(tmp_path), tmp_path / "scores.parquet"
    scored(job(pairs, out, part_rows=2), Share(0, 1 if finished else 2))
    with pytest.raises(ConfigError, match=rf"other settings: .*{next(iter(changed))} was .*--overwrite"):
        scored(job(pairs, out, **({"part_rows": 2} | changed)))


def test_parts_of_another_input_are_refused(tmp_path):
    settings = job(some_pairs(tmp_path), tmp_path / "scores.parquet")
    scored(settings)
    with (tmp_path / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"image": "0.png", "caption": "more"}')
    with pytest.raises(ConfigError, match="pairs was"):
        scored(settings)


def test_a_file_that_is_no_table_of_scores_is_not_replaced(tmp_path):
    pairs, out = some_pairs(tmp_path), tmp_path / "scores.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="cannot be read as scores"):
        scored(job(pairs, out))
    with pytest.raises(ConfigError, match="cannot be read as scores"):
        open_job(job(pairs, out)).parts.remove()
    assert out.read_bytes() == b"mine"


def test_a_fault_in_the_middle_of_a_part_leaves_no_file(tmp_path):
    opened = open_job(job(some_pairs(tmp_path), tmp_path / "scores.parquet"))
    opened.scorer.encoder.texts = lambda texts: (_ for _ in ()).throw(RuntimeError("stop"))
    with opened.scorer, pytest.raises(RuntimeError, match="stop"):
        score_parts(opened)
    assert not list((tmp_path / "scores.parquet.parts").iterdir())


def test_a_broken_table_keeps_the_parts_before_the_fault(tmp_path):
    names = pictures(tmp_path, 1)
    (tmp_path / "pairs.csv").write_text("image,caption\n" + f"{names[0]},text\n" * 150 + '"never closed,text\n', encoding="utf-8")
    with pytest.raises(DataFormatError, match="row 151"):
        scored(job(tmp_path / "pairs.csv", tmp_path / "scores.parquet", part_rows=60))
    assert len(list((tmp_path / "scores.parquet.parts").glob("part-*.parquet"))) == 2


@pytest.mark.parametrize("shard", ["2", "2/2", "-1/2", "a/b", "1/0"])
def test_shards_that_cannot_be_are_refused(shard):
    with pytest.raises(ConfigError, match="--shard is i/n"):
        Share.parse(shard, World.single())


def test_processes_of_a_shard_have_shares_of_their_own():
    shares = [Share.parse(f"{i}/2", World(rank=rank, size=3, device=World.single().device)) for i in range(2) for rank in range(3)]
    assert sorted(next(index for index in range(6) if share.holds(index)) for share in shares) == list(range(6))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_loses_no_finished_part(tmp_path):
    pairs = json_lines(tmp_path / "pairs.jsonl", [{"image": name, "caption": f"{name} {i}"} for name in pictures(tmp_path, 8) for i in range(2000)])
    line = [sys.executable, "-m", "vlm", "score", "--pairs", str(pairs), "--model", "tiny-clip", "--out", str(tmp_path / "scores.parquet")]
    line += ["--part-rows", "500", "--device", "cpu", "--precision", "fp32"]
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    folder = tmp_path / "scores.parquet.parts"
    while len(list(folder.glob("part-*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 3 <= len(finished) < 32
    opened = open_job(job(pairs, tmp_path / "scores.parquet", part_rows=500))
    with opened.scorer:
        outcome = score_parts(opened)
    assert outcome.rows == 16_000 - 500 * len(finished)
    assert pq.read_table(tmp_path / "scores.parquet").column("row").to_pylist() == list(range(16_000))


def test_a_table_that_another_process_joins_meanwhile_is_found(tmp_path, monkeypatch):
    settings = job(some_pairs(tmp_path), tmp_path / "scores.parquet", part_rows=5)
    real = parts_module.FileLock

    def lock(path):
        monkeypatch.setattr(parts_module, "FileLock", real)
        scored(settings)  # the other process comes first, and takes the folder with the lock away
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(parts_module, "FileLock", lock)
    assert scored(settings).statuses == {"ok": 10}


def test_parts_that_another_process_joins_are_not_missing(tmp_path, monkeypatch):
    settings = job(some_pairs(tmp_path), tmp_path / "scores.parquet", part_rows=5)
    looked = Parts.missing

    def missing(self, num_parts):
        monkeypatch.setattr(Parts, "missing", looked)
        scored(settings)
        return looked(self, num_parts)

    monkeypatch.setattr(Parts, "missing", missing)
    assert scored(settings).missing == []


def test_a_full_disk_while_parts_are_joined_is_one_line_and_keeps_them(tmp_path, monkeypatch):
    settings = job(some_pairs(tmp_path), tmp_path / "scores.parquet", part_rows=5)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", full_disk)
        with pytest.raises(
            ConfigError, match=r"scores\.parquet cannot be written \(No space left on device\)\. Its parts are kept in .*parts; free space"
        ):
            scored(settings)
    assert len(list((tmp_path / "scores.parquet.parts").glob("part-*"))) == 2
    assert scored(settings).rows == 0


def test_a_reason_is_one_line(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"image": "no\\nsuch.png", "caption": "x"}', encoding="utf-8")
    scored(job(pairs, tmp_path / "scores.parquet"))
    assert rows_of(tmp_path / "scores.parquet")[0]["error"].endswith("no such.png.")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

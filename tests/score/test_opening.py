"""A job opened: models by the hub's names, and pictures of URLs scored as those of files."""

import threading
import time
from functools import partial

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server
from tiny_scores import job, json_lines, pictures, rows_of, scored

from vlm.data.fetched import Fetched
from vlm.data.remote import fetch_bytes
from vlm.errors import CheckpointError, VLMError
from vlm.score.opening import open_job, pair_of_source


def test_the_hub_id_of_a_published_pair_is_its_name():
    assert pair_of_source("openai/clip-vit-base-patch32") == "clip-b32-224"
    assert pair_of_source("runs/mine") == "runs/mine"


def test_a_model_that_is_not_there_is_named(tmp_path):
    pairs = json_lines(tmp_path / "pairs.jsonl", [{"image": "a.png", "caption": "c"}])
    with pytest.raises(VLMError, match="no-such-model"):
        open_job(job(pairs, tmp_path / "s.parquet", model="no-such-model"))


def test_a_misspelled_pair_is_told_its_name(tmp_path):
    pairs = json_lines(tmp_path / "pairs.jsonl", [{"image": "a.png", "caption": "c"}])
    with pytest.raises(VLMError, match=r"Among published pairs, did you mean clip-b32-224"):
        open_job(job(pairs, tmp_path / "s.parquet", model="clip-b32-22"))


def test_weights_that_cannot_be_found_are_named(tmp_path):
    pairs = json_lines(tmp_path / "pairs.jsonl", [{"image": "a.png", "caption": "c"}])
    with pytest.raises(CheckpointError, match="nowhere"):
        open_job(job(pairs, tmp_path / "s.parquet", model="clip-b32-224", image_source=str(tmp_path / "nowhere")))


def test_pictures_of_urls_are_scored_as_those_of_files(tmp_path, archive_server: ArchiveServer):
    names = pictures(tmp_path, 3)
    urls = [archive_server.serve(name, (tmp_path / name).read_bytes()) for name in names]
    local = json_lines(tmp_path / "local.jsonl", [{"image": name, "caption": f"Picture {name}."} for name in names * 2])
    web = json_lines(tmp_path / "web.jsonl", [{"image": url, "caption": f"Picture {name}."} for url, name in zip(urls * 2, names * 2, strict=True)])
    scored(job(local, tmp_path / "local.parquet"))
    settings = {"images": "url", "allow_private": True, "cache": tmp_path / "kept", "part_rows": 2}
    scored(job(web, tmp_path / "web.parquet", **settings))
    assert len(archive_server.requests) == 3
    found, expected = rows_of(tmp_path / "web.parquet"), rows_of(tmp_path / "local.parquet")
    assert [row["status"] for row in found] == ["ok"] * 6
    assert [row["cos"] for row in found] == pytest.approx([row["cos"] for row in expected], abs=1e-5)
    scored(job(web, tmp_path / "again.parquet", **settings))
    assert len(archive_server.requests) == 3


class Meeting:
    """Fetches that begin when six of them are there, and how many were there at once."""

    def __init__(self):
        self.barrier, self.lock = threading.Barrier(6), threading.Lock()
        self.now = self.most = 0

    def __call__(self, url, rules):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.barrier.wait(60)
        time.sleep(0.1)  # for others to come, if they were let
        try:
            return fetch_bytes(url, rules)
        finally:
            with self.lock:
                self.now -= 1


def test_as_many_pictures_are_fetched_at_a_time_as_there_may_be_connections(tmp_path, archive_server: ArchiveServer, monkeypatch):
    """And no more: threads that decode wait for their turn."""
    meeting = Meeting()
    monkeypatch.setattr("vlm.score.opening.Fetched", partial(Fetched, fetch=meeting))
    content = (tmp_path / pictures(tmp_path, 1)[0]).read_bytes()
    urls = [archive_server.serve(f"{i}.png", content) for i in range(12)]
    pairs = json_lines(tmp_path / "web.jsonl", [{"image": url, "caption": "A caption."} for url in urls])
    scored(job(pairs, tmp_path / "s.parquet", images="url", allow_private=True, connections=6, workers=6, batch_size="2"))
    assert [row["status"] for row in rows_of(tmp_path / "s.parquet")] == ["ok"] * 12
    assert (meeting.most, len(archive_server.requests)) == (6, 12)


def test_hosts_that_are_not_allowed_are_a_status(tmp_path, archive_server: ArchiveServer):
    url = archive_server.serve("a.png", b"")
    pairs = json_lines(tmp_path / "web.jsonl", [{"image": url, "caption": "c"}])
    scored(job(pairs, tmp_path / "s.parquet", images="url", allow_private=True, allow_host=("a.org",)))
    (row,) = rows_of(tmp_path / "s.parquet")
    assert (row["status"], archive_server.requests) == ("fetch_error", [])
    assert "not an allowed host" in row["error"]


@pytest.mark.parametrize("allowed", ["127.0.0.1", "*"])
def test_pictures_of_allowed_hosts_are_fetched(tmp_path, archive_server: ArchiveServer, allowed):
    url = archive_server.serve("a.png", (tmp_path / pictures(tmp_path, 1)[0]).read_bytes())
    pairs = json_lines(tmp_path / "web.jsonl", [{"image": url, "caption": "c"}])
    scored(job(pairs, tmp_path / "s.parquet", images="url", allow_private=True, allow_host=(allowed,)))
    assert [row["status"] for row in rows_of(tmp_path / "s.parquet")] == ["ok"]

"""Attempts, pauses and kept files, with a network that tests make up."""

import pytest

from vlm.data.fetched import Fetched, cache_path
from vlm.data.remote import FetchError, FetchRules
from vlm.errors import ConfigError

URL = "https://a.org/x.png"


class Network:
    """Fails as often as it is told, then gives bytes."""

    def __init__(self, *faults: FetchError):
        self.faults, self.asked = list(faults), 0

    def __call__(self, url: str, rules: FetchRules) -> bytes:
        self.asked += 1
        if self.faults:
            raise self.faults.pop(0)
        return b"content"


def test_a_fault_that_may_pass_is_tried_again_after_growing_pauses():
    network, pauses = Network(*[FetchError("late", passing=True)] * 3), []
    assert Fetched(retries=3, pause=pauses.append, fetch=network).bytes_of(URL) == b"content"
    assert pauses == [0.5, 1.0, 2.0]


def test_the_last_fault_is_raised():
    network = Network(*[FetchError("late", passing=True)] * 3)
    with pytest.raises(FetchError, match="late"):
        Fetched(retries=2, pause=lambda _: None, fetch=network).bytes_of(URL)
    assert network.asked == 3


def test_a_fault_that_stays_is_not_tried_again():
    network = Network(FetchError("404"))
    with pytest.raises(FetchError, match="404"):
        Fetched(retries=2, fetch=network).bytes_of(URL)
    assert network.asked == 1


def test_what_was_fetched_is_kept_under_the_hash_of_its_url(tmp_path):
    network = Network()
    fetched = Fetched(folder=tmp_path, fetch=network)
    assert fetched.bytes_of(URL) == fetched.bytes_of(URL) == b"content"
    assert network.asked == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cache_path(tmp_path, URL)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be kept in"):
        Fetched(folder=tmp_path / "file", fetch=Network()).bytes_of(URL)

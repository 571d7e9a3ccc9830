from pathlib import Path

import pytest

from vlm.data.preparation.locks import locked
from vlm.errors import ConfigError


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path):
    files = [tmp_path / "b" / "x.lock", tmp_path / "a.lock", tmp_path / "a.lock"]
    with locked(files, work="prepares x"):
        with pytest.raises(ConfigError, match=r"Another process prepares x right now: it holds .*x\.lock\."), locked(files[:1], work="prepares x"):
            pass
        assert files[0].exists() and files[1].exists()
    assert not files[0].exists() and not files[1].exists()
    with locked(files, work="prepares x"):
        pass


def test_locks_taken_before_the_one_that_is_held_are_given_back(tmp_path: Path):
    with locked([tmp_path / "b.lock"], work="works"):
        with pytest.raises(ConfigError), locked([tmp_path / "a.lock", tmp_path / "b.lock"], work="works"):
            pass
        with locked([tmp_path / "a.lock"], work="works"):
            pass

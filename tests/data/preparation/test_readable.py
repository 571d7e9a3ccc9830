from pathlib import Path

import pytest

from vlm.data.preparation.readable import readable
from vlm.errors import ConfigError


def test_what_the_system_refuses_is_one_line_with_the_path(tmp_path: Path):
    @readable()
    def size(path: Path) -> int:
        return len(path.read_bytes())

    (tmp_path / "a").write_bytes(b"abc")
    assert size(tmp_path / "a") == 3
    with pytest.raises(ConfigError) as caught:
        size(tmp_path)
    assert str(caught.value) == f"Cannot read {tmp_path} (Is a directory). Make it readable, or give another path."


def test_other_errors_pass(tmp_path: Path):
    with pytest.raises(KeyError), readable():
        raise KeyError("a")

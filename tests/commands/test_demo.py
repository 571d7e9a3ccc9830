from pathlib import Path

import pytest

from vlm.commands.demo import activation


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment below the current folder, which is not on the PATH."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("activate", "vlm"):
        (binaries / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return binaries


def test_demo_says_how_a_shell_finds_the_command_that_it_names(environment: Path):
    assert activation() == "Put vlm on your PATH: source .venv/bin/activate\n"


def test_demo_says_nothing_where_the_command_is_found(environment: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(environment))
    assert activation() == ""


def test_demo_says_nothing_where_there_is_nothing_to_activate(environment: Path):
    (environment / "activate").unlink()
    assert activation() == ""

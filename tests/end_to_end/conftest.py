"""What whole-system tests share: tiny data, and one run of the demo for all of them."""

import json
import subprocess
import sys

import pytest
from tiny_data import data, own_cache, tiny  # noqa: F401  fixtures

TIMEOUT = 40 * 60  # seconds, on any machine


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The folder in which the demo ran, with its data/ and runs/; the finished process; its summary. Only for tests that are `slow` and `alone`."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "vlm", "demo", "--data-root", str(folder / "data"), "--run-root", str(folder / "runs")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result, json.loads((folder / "runs" / "demo" / "summary.json").read_text())

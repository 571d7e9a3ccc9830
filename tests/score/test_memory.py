"""The peak memory of `vlm score` against the length of the table, each in a process of its own: the short form of a benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_times_the_rows_take_hardly_more_memory(tmp_path):
    """Of the 0.03 GB more that they take, 38,000 remembered texts are most; rows that were all held, with their scores, would be another 0.06."""
    command = [sys.executable, str(ROOT / "benchmarks" / "score.py"), "--threads", "1", "--rows", "2000", "40000"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout.splitlines()[-1])["memory"]
    assert (short["rows"], long["rows"]) == (2_000, 40_000)
    assert long["peak_gb"] < short["peak_gb"] + 0.06

import logging
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vlm.commands.meter import RichMeter
from vlm.data.archives.meter import Meter

ROOT = Path(__file__).parents[2]


def test_it_is_a_meter():
    assert isinstance(RichMeter(), Meter)


def test_without_a_terminal_a_line_comes_every_thirty_seconds(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]):
    caplog.set_level(logging.INFO)
    now = 0.0
    with RichMeter(lambda: now) as meter:
        meter.start("a.zip", 1_000_000_000, have=100_000_000)
        meter.start("b.zip", None)
        for second in range(1, 62):
            now = float(second)
            meter.advance("a.zip", 10_000_000)
        meter.done("a.zip")
        meter.done("b.zip")
    assert caplog.messages == [
        "a.zip: 400.0 MB of 1.0 GB, 10.0 MB/s, 0:01:00 left; b.zip: 0 bytes",
        "a.zip: 700.0 MB of 1.0 GB, 10.0 MB/s, 0:00:30 left; b.zip: 0 bytes",
    ]
    assert capsys.readouterr() == ("", "")


def test_file_that_starts_anew_is_shown_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    now = 0.0
    with RichMeter(lambda: now) as meter:
        meter.start("a.zip", 100)
        meter.advance("a.zip", 90)
        meter.start("a.zip", 100)
        now = 31.0
        meter.advance("a.zip", 10)
    assert caplog.messages == ["a.zip: 10 bytes of 100 bytes"]


def test_threads_may_call_it_at_once():
    with RichMeter() as meter:

        def run(name: str) -> None:
            meter.start(name, 1000)
            for _ in range(1000):
                meter.advance(name, 1)
            meter.done(name)

        threads = [threading.Thread(target=run, args=(f"{i}.zip",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not meter._progress.tasks


SHOW = """
import time
from vlm.commands.meter import RichMeter
with RichMeter() as meter:
    meter.start("[a].zip", 2_000_000)
    for _ in range(8):
        meter.advance("[a].zip", 200_000)
        time.sleep(0.05)
"""


def test_on_a_terminal_name_size_and_rate_are_shown():
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, stderr=theirs, timeout=30)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    for words in ("[a].zip", "1.6/2.0 MB", "MB/s", "0:00:0"):
        assert words in seen

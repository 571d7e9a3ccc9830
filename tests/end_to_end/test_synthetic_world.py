"""Both ends of what contrast on few concepts and distillation on many buy, by the trainer itself: the quick form of `benchmarks/synthetic_world.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_only_distillation_on_broad_texts_reaches_classes_that_no_picture_shows(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "synthetic_world.py"), "--quick"]  # a process of its own: it adds encoders to the registries
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.55 < found["native_accuracy"] < 0.75
    assert min(found[f"{kind}_recall_at_5"] for kind in ("infonce", "distilled_captions", "distilled_broad")) >= found["native_recall_at_5"]
    assert max(found["infonce_accuracy"], found["distilled_captions_accuracy"]) < 0.03
    assert found["distilled_broad_accuracy"] > 0.55

"""An LLM learns the space of a trained pair from few pictures, with and without the pair's own text encoder as teacher: the quick form of a benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = "a tenth of the pictures: "


@pytest.mark.slow
def test_distillation_on_names_finds_more_held_out_concepts_than_contrast_alone(tmp_path):
    benchmark = str(ROOT / "benchmarks" / "contrastive_demo.py")  # a process of its own: it adds encoders to the registries
    command = [sys.executable, benchmark, "--group", "llm", "--quick", "--seeds", "1"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    ceiling, plain, distilled = rows["the pair itself"], rows[f"{FEW}plain"], rows[f"{FEW}and on names, none held out"]
    for side in ("image", "text"):
        metric = f"{side}_retrieval_recall@5"
        assert plain[metric] + 0.06 < distilled[metric] < ceiling[metric] + 0.05

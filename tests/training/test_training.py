"""The golden loss curve. Where the mathematics changes on purpose, write it anew: `VLM_WRITE_GOLDEN=1 pytest tests/training/test_training.py`."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_data import losses

import vlm

GOLDEN = Path(__file__).parents[1] / "data" / "golden_loss_curve.json"
REGENERATE = "VLM_WRITE_GOLDEN=1 pytest tests/training/test_training.py"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_loss_curve_is_the_committed_one(tiny, stage):
    curve = losses(vlm.train(tiny(stage, max_steps=20, seed=7, num_workers=0)))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
    if os.environ.get("VLM_WRITE_GOLDEN"):
        golden |= {"regenerate": REGENERATE, f"tiny/{stage}": [round(loss, 6) for loss in curve]}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    assert curve == pytest.approx(golden[f"tiny/{stage}"], rel=1e-4), f"If this is meant: {REGENERATE}"
    assert len(curve) == 20


@pytest.mark.usefixtures("one_thread")
def test_two_runs_with_the_same_seed_have_bit_equal_losses_and_weights(tiny):
    curves, weights = [], []
    for root in ("first", "second"):
        run_dir = vlm.train(tiny("align", seed=7, run_root=tiny().run_root / root))
        curves.append(losses(run_dir))
        weights.append(load_file(run_dir / "checkpoints" / "step-000004" / "weights.safetensors"))
    assert curves[0] == curves[1]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert tensor.equal(weights[1][name]), name

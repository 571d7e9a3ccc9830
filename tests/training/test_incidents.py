import json
import math

import pytest
from tiny_data import metrics

import vlm
from vlm.errors import ConfigError
from vlm.models.vision_language import VisionLanguageModel
from vlm.training.incidents import LEAST, Incident, Incidents, MicroBatchLoss, SpikeDetector
from vlm.training.loop import MOST_SKIPPED_IN_A_ROW
from vlm.types import LossSum, World


def break_steps(monkeypatch, broken):
    """The loss of some steps is not a number; 8 samples a step in two micro-batches, the second of which breaks."""
    forward, calls = VisionLanguageModel.forward, []

    def forward_or_nan(self, batch):
        loss = forward(self, batch)
        if self.training:
            calls.append(batch.samples)
        step, second = (len(calls) + 1) // 2, len(calls) % 2 == 0
        return LossSum(loss.sum * math.nan, loss.count) if self.training and step in broken and second else loss

    monkeypatch.setattr(VisionLanguageModel, "forward", forward_or_nan)
    return calls


def incidents(run_dir):
    return [json.loads(line) for line in (run_dir / "incidents.jsonl").read_text(encoding="utf-8").splitlines()]


def test_loss_that_is_not_a_number_ends_the_run_and_names_its_samples(tiny, monkeypatch):
    config = tiny(per_device_batch_size=4, max_steps=4, checkpoint_every=1)
    calls = break_steps(monkeypatch, {3})
    with pytest.raises(
        ConfigError, match=r"Step 3: the loss is nan.*--on-nan skip leaves such steps out. What the step saw stands in .*incidents.jsonl"
    ):
        vlm.train(config)
    (incident,) = incidents(config.run_dir)
    assert (incident["step"], incident["kind"], incident["loss"]) == (3, "nan", "nan")
    assert incident["norms"] == {"connector": "nan"}
    good, bad = incident["micro_batches"]
    assert isinstance(good["loss"], float)
    assert bad["loss"] == "nan"
    assert bad["rank"] == 0
    ids = ["red", "green", "blue", "gray", "text", "long", "two", "turns"]
    assert bad["samples"] == [ids[i] for i in calls[5]]
    assert [path.name for path in sorted((config.run_dir / "checkpoints").iterdir())] == ["step-000001", "step-000002"]


def test_skipped_step_changes_no_weight_and_training_goes_on(tiny, monkeypatch):
    config = tiny(per_device_batch_size=4, max_steps=4, on_nan="skip")
    break_steps(monkeypatch, {2})
    lines = metrics(vlm.train(config))
    assert [line["step"] for line in lines if "num_skipped" in line] == [2]
    assert "loss" not in lines[1]
    assert all(math.isfinite(line["loss"]) for line in (lines[0], *lines[2:]))
    assert "NaN" not in (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8")


def test_too_many_skipped_steps_in_a_row_end_the_run(tiny, monkeypatch):
    config = tiny(per_device_batch_size=4, max_steps=30, on_nan="skip")
    break_steps(monkeypatch, set(range(31)))
    with pytest.raises(ConfigError, match=rf"Step {MOST_SKIPPED_IN_A_ROW + 1}: the loss is nan; so were {MOST_SKIPPED_IN_A_ROW} steps before it"):
        vlm.train(config)


def test_spike_is_far_above_the_median_and_the_noise():
    detector = SpikeDetector()
    assert not any(detector.sees(2.0 + 0.01 * (i % 3)) for i in range(LEAST))
    assert not detector.sees(2.3)  # less than a fifth above the median
    assert detector.sees(3.0)
    assert not detector.sees(math.nan)
    noisy = SpikeDetector()
    assert not any(noisy.sees(2.0 + (i % 5)) for i in range(40))


def test_first_losses_are_never_spikes():
    detector = SpikeDetector()
    assert not any(detector.sees(value) for value in (1.0, 100.0, 1.0, 1000.0))


def test_spike_is_written_down_and_said(tmp_path, caplog):
    write = Incidents(tmp_path, World.single(), lambda i: f"sample {i}")
    write(Incident(7, "spike", 9.5, {"connector": 3.0}, [MicroBatchLoss(9.5, (4, 2))]))
    (line,) = incidents(tmp_path)
    assert line["micro_batches"] == [{"rank": 0, "loss": 9.5, "samples": ["sample 4", "sample 2"]}]
    assert "step 7: the loss jumped to 9.5; its samples stand in" in caplog.text

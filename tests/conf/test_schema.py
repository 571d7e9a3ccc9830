from dataclasses import replace

import pytest

from vlm.conf.schema import AssumeConfig, BatchPlan, LearningRates, LoRAConfig, StageConfig, TrackingConfig, VisionLanguageConfig
from vlm.errors import ConfigError

STAGE = StageConfig(name="x", dataset="x", lr=LearningRates(connector=1e-3))


def plan(size: int, per_device: int, world: int = 1) -> BatchPlan:
    return BatchPlan.of(replace(STAGE, global_batch_size=size, per_device_batch_size=per_device), world=world)


@pytest.mark.parametrize(("size", "per_device", "world", "accumulation"), [(8, 8, 1, 1), (8, 2, 1, 4), (8, 2, 2, 2), (256, 32, 8, 1)])
def test_plan_multiplies_to_the_global_batch(size, per_device, world, accumulation):
    assert plan(size, per_device, world) == BatchPlan(world=world, per_device=per_device, accumulation=accumulation)


@pytest.mark.parametrize(
    ("size", "per_device", "world", "nearest"),
    [
        (10, 4, 1, "--stage.global-batch-size 8 or 12, or --stage.per-device-batch-size 5"),
        (128, 48, 1, "--stage.global-batch-size 96 or 144, or --stage.per-device-batch-size 32"),
        (8, 16, 1, "--stage.global-batch-size 16, or --stage.per-device-batch-size 8"),
        (7, 2, 2, "--stage.global-batch-size 4 or 8."),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_the_nearest_that_do(size, per_device, world, nearest):
    with pytest.raises(ConfigError) as caught:
        plan(size, per_device, world)
    assert f"is not a multiple of --stage.per-device-batch-size {per_device} x {world} device(s) = {per_device * world}" in str(caught.value)
    assert nearest in str(caught.value)


def test_steps_cover_all_samples():
    assert [plan(8, 4).steps(samples) for samples in (1, 8, 9)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"global_batch_size": 0}, "Batch sizes are at least 1"),
        ({"per_device_batch_size": -1}, "Batch sizes are at least 1"),
        ({"epochs": 0.0}, "--stage.epochs is 0.0; it must be positive and finite"),
        ({"max_steps": 0}, "--stage.max-steps is 0; at least 1"),
        ({"max_length": 0}, "--stage.max-length is 0; at least 1"),
        ({"num_workers": -1}, "--stage.num-workers is -1; at least 0"),
        ({"clip_norm": 0.0}, "--stage.clip-norm is 0.0; it must be positive"),
        ({"weight_decay": -0.1}, "--stage.weight-decay is -0.1; at least 0"),
        ({"warmup_ratio": 1.5}, "--stage.warmup-ratio is 1.5; it must lie between 0 and 1"),
        ({"decay_ratio": -0.1}, "--stage.decay-ratio is -0.1"),
        ({"name": "a/b"}, "--stage.name is 'a/b'"),
        ({"betas": (0.9, 1.0)}, r"--stage.betas is \(0.9, 1.0\); each must be at least 0 and below 1"),
        ({"betas": (-0.1, 0.9)}, r"--stage.betas is \(-0.1, 0.9\)"),
        ({"betas": (float("nan"), 0.9)}, r"--stage.betas is \(nan, 0.9\)"),
        ({"clip_norm": float("nan")}, "--stage.clip-norm is nan"),
        ({"weight_decay": float("nan")}, "--stage.weight-decay is nan; at least 0"),
        ({"epochs": float("inf")}, "--stage.epochs is inf"),
    ],
)
def test_values_outside_of_their_range_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        replace(STAGE, **changed)


@pytest.mark.parametrize("changed", [{"log_every": 0}, {"sample_every": 0}, {"num_samples": 0}])
def test_tracking_at_every_zeroth_step_is_refused(changed):
    with pytest.raises(ConfigError, match=r"is 0; at least 1"):
        TrackingConfig(**changed)


def test_all_rates_none_is_refused():
    with pytest.raises(ConfigError, match="All learning rates are None, so nothing would be trained"):
        LearningRates()


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
def test_rate_that_is_not_positive_and_finite_is_refused(rate):
    with pytest.raises(ConfigError, match=rf"--stage.lr.vision is {rate}; a learning rate is positive and finite, and None freezes"):
        LearningRates(vision=rate)


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a+b"])
def test_model_name_that_cannot_be_part_of_a_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"--model.name is '.*'; it becomes part of a folder's name"):
        VisionLanguageConfig(vision="x", language="x", name=name)


@pytest.mark.parametrize("values", [{"rank": -1}, {"dropout": 1.0}])
def test_impossible_adapter_is_refused(values):
    with pytest.raises(ConfigError, match="LoRA needs rank >= 0 and 0 <= dropout < 1"):
        LoRAConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, "positive, finite alpha; got 0.0: the adapter would change nothing"),
        ({"alpha": float("nan")}, "positive, finite alpha; got nan"),
        ({"quantize": "nf4"}, "quantize is nf4, but its rank is 0"),
        ({"rank": 4, "kind": "dora", "quantize": "int8"}, "bitsandbytes does not give of int8. Set quantize nf4, or another kind"),
    ],
)
def test_adapter_that_could_not_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**values)


@pytest.mark.parametrize("values", [{"mfu": 0.0}, {"mfu": 40.0}, {"mfu": float("nan")}, {"text_tokens": 0}, {"num_devices": 0}])
def test_impossible_assumption_is_refused(values):
    with pytest.raises(ConfigError, match="--assume"):
        AssumeConfig(**values)

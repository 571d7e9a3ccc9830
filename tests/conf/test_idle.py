from dataclasses import replace

import pytest

from vlm.conf.contrastive import PairAssumptions
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.idle import idle_settings
from vlm.conf.presets import PRESETS
from vlm.conf.schema import AssumeConfig, LearningRates, LoRAConfig, LoRATowers, ParallelConfig, TrackingConfig

BASE = PRESETS["tiny/align"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_no_preset_sets_anything_in_vain(name):
    assert idle_settings(PRESETS[name]) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"stage": replace(BASE.stage, decay_ratio=0.1)}, "--stage.decay-ratio"),
        ({"stage": replace(BASE.stage, schedule="constant", final_lr_ratio=0.1)}, "--stage.final-lr-ratio"),
        ({"stage": replace(BASE.stage, epochs=2.0)}, "--stage.epochs 2 has no effect"),
        ({"stage": replace(BASE.stage, group_by_length=True, pack_length=512)}, "--stage.group-by-length"),
        ({"stage": replace(BASE.stage, gradient_checkpointing=("vision",))}, "--stage.gradient-checkpointing vision"),
        ({"keep_every": 5}, "--keep-every"),
        ({"keep_last": 5}, "--keep-last"),
        ({"stage": replace(BASE.stage, mixture_by="tokens")}, "--stage.mixture-by"),
        ({"stage": replace(BASE.stage, lr=LearningRates(language=1e-4))}, "--stage.lr.connector"),
        ({"tracking": TrackingConfig(wandb_project="mine")}, "--tracking.wandb-project"),
        ({"tracking": TrackingConfig(sample_every=5)}, "--tracking.sample-every"),
        ({"assume": AssumeConfig(mfu=0.5)}, "--assume"),
        ({"model": replace(BASE.model, lora=LoRATowers(LoRAConfig(alpha=32.0)))}, "--model.lora.language"),
        ({"model": replace(BASE.model, lora=LoRATowers(vision=LoRAConfig(kind="dora")))}, "--model.lora.vision"),
        ({"parallel": ParallelConfig("fsdp", shard_size=2)}, "--parallel.shard-size"),
        ({"parallel": ParallelConfig("ddp", reshard_after_forward=False)}, "--parallel.no-reshard-after-forward"),
    ],
)
def test_setting_without_effect_is_named(changed, named):
    (sentence,) = idle_settings(replace(BASE, **changed))
    assert named in sentence


def test_assumptions_of_contrastive_runs_have_no_effect_without_a_dry_run():
    config = replace(CONTRASTIVE_PRESETS["tiny-ape/align"], stage=replace(CONTRASTIVE_PRESETS["tiny-ape/align"].stage, epochs=1.0))
    assumed = replace(config, assume=PairAssumptions(num_images=5))
    assert set(idle_settings(assumed)) - set(idle_settings(config)) == {"The settings of --assume have no effect without --dry-run."}
    assert idle_settings(replace(assumed, dry_run=True)) == idle_settings(config)


def test_strategy_has_no_effect_in_one_process():
    config = replace(BASE, parallel=ParallelConfig("fsdp"))
    assert idle_settings(config, ranks=2) == []
    (sentence,) = idle_settings(config, ranks=1)
    assert sentence == "--parallel.strategy fsdp has no effect in one process: start several with torchrun."

"""Two ranks against one: DDP, FSDP2 and both together give the losses and the weights of one process, however a global batch is cut."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import images_of_ranks, losses, metrics, write
from torch import nn
from torch.distributed.tensor import DTensor

import vlm
from vlm.conf.schema import LearningRates, LoRATowers, ParallelConfig, TrackingConfig
from vlm.conf.serialize import write_config
from vlm.distributed.placement import Placement
from vlm.distributed.shard import gathered, is_sharded, place_of, spread, whole_on_main
from vlm.errors import ConfigError
from vlm.training.loop import refuse_broken_weights
from vlm.types import World

pytestmark = pytest.mark.dist

TRAIN_SHARDED = Path(__file__).with_name("train_sharded.py")
DDP, FSDP = ParallelConfig("ddp"), ParallelConfig("fsdp")
ALL = LearningRates(vision=1e-3, connector=1e-3, language=1e-3)


def named(config, name, **changed):
    """A config under another name, with settings of the run or of the stage replaced."""
    stage = {key: changed.pop(key) for key in list(changed) if key in type(config.stage).__dataclass_fields__}
    return replace(config, model=replace(config.model, name=name), stage=replace(config.stage, **stage), **changed)


def run_both(configs, torchrun, tmp_path, *, of=lambda name: name, processes=2):
    """Train each config on several ranks, and those that `of` names in one process; pairs of run folders by the name of the config."""
    files = [tmp_path / f"{name}.json" for name in configs]
    for file, config in zip(files, configs.values(), strict=True):
        write_config(replace(config, run_root=tmp_path / "many"), file)
    done = torchrun(TRAIN_SHARDED, *files, processes=processes, timeout=300)
    alone = {
        name: vlm.train(replace(configs[name], parallel=ParallelConfig(), run_root=tmp_path / "one")) for name in dict.fromkeys(map(of, configs))
    }
    pairs = {name: (alone[of(name)], tmp_path / "many" / config.run_id) for name, config in configs.items()}
    return pairs, [line for line in done.stdout.splitlines() if "x" in line[:3]]


def assert_same(pairs, *, tolerance=1e-5):
    for name, (one, many) in pairs.items():
        assert losses(many) == pytest.approx(losses(one), abs=tolerance), name
        norms = [[line["grad_norm"] for line in metrics(run) if "loss" in line] for run in (one, many)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3), name
        first, second = (load_file(sorted(run.glob("checkpoints/*/weights.safetensors"))[-1]) for run in (one, many))
        assert first.keys() == second.keys(), name
        # A key's bias has no effect on attention: its gradient is rounding alone, and Adam makes steps of a whole rate of it.
        distances = {key: float((first[key] - second[key]).abs().max()) for key in first if not key.endswith("k_proj.bias")}
        worst = max(distances, key=distances.__getitem__)
        assert distances[worst] < 5e-4, (name, worst, distances[worst])
        manifests = [json.loads(next(run.glob("checkpoints/*/model.json")).read_text(encoding="utf-8")) for run in (one, many)]
        assert manifests[0]["fingerprints"] == manifests[1]["fingerprints"], name


class Tied(nn.Module):
    """Three weights of one shape, two of them tied."""

    def __init__(self):
        super().__init__()
        self.table, self.head, self.twin = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def units(self):
        return (self.twin,)


@pytest.fixture
def alone(_group):
    """A model of which one rank holds every share, and its weights from before."""
    model = Tied()
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    spread(model, Placement(is_sharded=True), World.single())
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    return model, before


@pytest.fixture
def _group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_weights_of_a_sharded_model_come_back_whole(alone):
    model, before = alone
    assert is_sharded(model)
    after = whole_on_main(model.state_dict(), World.single())
    assert after.keys() == before.keys()
    for name, weight in after.items():
        assert type(weight) is torch.Tensor
        torch.testing.assert_close(weight, before[name], atol=0, rtol=0)
    with torch.no_grad():
        model.twin.weight.zero_()
    torch.testing.assert_close(after["twin.weight"], before["twin.weight"], atol=0, rtol=0)  # a copy


def test_tied_weights_are_known_as_one_and_others_are_not(alone):
    table, head, twin = alone[0].state_dict(keep_vars=True).values()
    assert place_of(table) == place_of(head) != place_of(twin)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_is_found_in_a_share(alone, value):
    model, _ = alone
    refuse_broken_weights(model, 3)
    with torch.no_grad():
        model.twin.weight.to_local()[5, 3] = value
    with pytest.raises(ConfigError, match=r"Step 3: the update left values in 'twin.weight' that are not finite"):
        refuse_broken_weights(model, 3)


def test_methods_of_parts_can_be_called_where_the_model_is_gathered(alone):
    model, before = alone
    whole_on_main(model.state_dict(), World.single())
    with gathered(model):
        torch.testing.assert_close(model.table(torch.tensor([2]))[0], before["table.weight"][2], atol=0, rtol=0)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())


def test_sharded_ranks_train_as_one_process(tiny, torchrun, tmp_path):
    """Mixed samples throughout; where each rank has one sample, some ranks have a picture while others have none."""
    full = replace(tiny("finetune").model, lora=LoRATowers())
    alone = {"per_device_batch_size": 1, "global_batch_size": 2, "max_steps": 6}
    configs = {
        "frozen": tiny("align", per_device_batch_size=2),
        "lora": tiny("finetune", per_device_batch_size=2, lr=LearningRates(vision=1e-3, connector=1e-3, language=1e-2)),
        "full": tiny("finetune", model=full, lr=ALL, **alone),
        "tied": tiny("finetune", model=replace(full, language="tiny-qwen2"), lr=ALL, **alone),
        "packed": tiny("finetune", per_device_batch_size=1, global_batch_size=4, pack_length=400, share_images=True),
        "language": tiny("finetune", lr=LearningRates(language=1e-2), **alone),
        "recomputed": tiny("finetune", model=full, lr=ALL, gradient_checkpointing=("vision", "language"), **alone),
    }
    assert {min(step) for step in images_of_ranks(configs["language"], 2)} == {0, 1}
    assert {max(step) for step in images_of_ranks(configs["language"], 2)} == {1}
    configs = {name: named(config, name, parallel=FSDP) for name, config in configs.items()}
    configs["full"] = replace(configs["full"], parallel=ParallelConfig("fsdp", reshard_after_forward=False))
    configs["packed"] = replace(configs["packed"], parallel=ParallelConfig("hsdp", shard_size=1))
    configs["language"] = replace(configs["language"], parallel=ParallelConfig("hsdp", shard_size=2))
    pairs, spread = run_both(configs, torchrun, tmp_path)
    assert spread == ["1x2 sharded"] * 4 + ["2x1 sharded"] + ["1x2 sharded"] * 2
    assert_same(pairs)


def test_every_cut_of_a_global_batch_gives_the_same_run(tiny, torchrun, tmp_path):
    config = tiny("finetune", lr=LearningRates(vision=1e-3, connector=1e-3, language=1e-2), schedule="constant")
    strategies = {"ddp": DDP, "fsdp": FSDP, "hsdp": ParallelConfig("hsdp", shard_size=1)}
    configs = {
        f"{name}{size}": named(config, f"{name}{size}", parallel=parallel, per_device_batch_size=size)
        for name, parallel in strategies.items()
        for size in (1, 2, 4)
    }
    pairs, _ = run_both(configs, torchrun, tmp_path, of=lambda _: "ddp4")
    assert_same(pairs)


@pytest.mark.slow
def test_copies_of_shares_train_as_one_process(tiny, torchrun, tmp_path):
    config = tiny("finetune", lr=ALL, per_device_batch_size=1, parallel=ParallelConfig("hsdp", shard_size=2), validation=str(tmp_path / "data.json"))
    write(tmp_path)
    config = replace(config, model=replace(config.model, name="grid", lora=LoRATowers()))
    pairs, spread = run_both({"grid": config}, torchrun, tmp_path, processes=4)
    assert spread == ["2x2 sharded"]
    assert_same(pairs)


def test_validation_checkpoints_and_resume_of_sharded_runs(tiny, torchrun, tmp_path, data):
    """All ranks take part in the looks at validation pictures, and one process reads what two wrote."""
    tracking = TrackingConfig(sample_every=1, num_samples=3)
    config = tiny("finetune", validation=str(data), tracking=tracking, max_steps=4, schedule="constant", warmup_ratio=0.0, checkpoint_every=2)
    low = named(config, "low", precision="bf16-mixed", parallel=FSDP)
    half = named(config, "half", max_steps=2, parallel=FSDP)
    lowest = named(config, "lowest", precision="bf16", parallel=ParallelConfig("hsdp", shard_size=1))
    whole = named(config, "whole", parallel=FSDP)
    pairs, _ = run_both({"whole": whole, "low": low, "lowest": lowest, "half": half}, torchrun, tmp_path)
    assert_same({"whole": pairs["whole"], "half": pairs["half"]})
    for name, (one, many) in pairs.items():
        assert losses(many) == pytest.approx(losses(one), rel=0.02), name
        seen = [[line["validation_loss"] for line in metrics(run) if "validation_loss" in line] for run in (one, many)]
        assert len(seen[0]) == len(losses(one))
        assert seen[1] == pytest.approx(seen[0], rel=1e-5 if name in ("whole", "half") else 0.02), name
    resumed = vlm.train(named(half, "half", max_steps=4, parallel=ParallelConfig(), run_root=tmp_path / "many", resume="auto"))
    assert losses(resumed) == pytest.approx(losses(pairs["whole"][0]), abs=1e-5)
    file = tmp_path / "again.json"
    write_config(named(half, "half", max_steps=4, run_root=tmp_path / "one", resume="auto", parallel=FSDP), file)
    torchrun(TRAIN_SHARDED, file, timeout=150)
    assert losses(tmp_path / "one" / half.run_id) == pytest.approx(losses(pairs["whole"][0]), abs=1e-5)

"""Adapters folded into towers: every kind, on each tower, against the model that was not merged."""

import importlib.util
import shutil
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from vlm.conf.schema import LoRAConfig, LoRATowers
from vlm.errors import CheckpointError
from vlm.models.build import build
from vlm.models.checkpoint import load, read_manifest, save
from vlm.models.merge import merge

TALK = [["<image>\nWhat color is the circle?", "blue"], ["Is there a red square?", "No"]]


@torch.no_grad()
def stir(model) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        if weight.requires_grad:
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def logits(model, batch):
    return model.language.logits(model.hidden(batch).flatten(0, 1))


@pytest.fixture
def trained(compose, config, tmp_path):
    """`trained(rank=4, vision="tiny-fused")`: a checkpoint with stirred adapters."""

    def make(**parts):
        towers = [tower for tower, rank in (("vision", "vision_rank"), ("language", "rank")) if parts.get(rank)]
        model = compose(trained=("connector", *towers), **parts)
        stir(model)
        save(model, config(**parts), tmp_path / "step")
        return tmp_path / "step"

    return make


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize(
    "parts",
    [
        {"rank": 4},
        {"vision_rank": 2},
        {"rank": 4, "vision_rank": 2, "vision": "tiny-fused", "language": "tiny-qwen2"},  # tied embeddings
    ],
    ids=["language", "vision", "both"],
)
def test_merged_logits_are_those_of_the_adapted_model(trained, config, chat_batch, tmp_path, kind, parts):
    folder = trained(kind=kind, **parts)
    done = merge(folder, tmp_path / "merged")
    before, after = load(folder, precision="fp32"), load(tmp_path / "merged", precision="fp32")
    batch = chat_batch(before, TALK)
    torch.testing.assert_close(logits(after, batch), logits(before, batch), atol=1e-5 * max(1.0, done.largest), rtol=0)
    towers = {tower for tower, rank in (("vision", "vision_rank"), ("language", "rank")) if rank in parts}
    assert set(done.towers) == towers
    assert 0 <= done.difference < 1e-5 * max(1, done.largest)
    stored = load_file(tmp_path / "merged" / "weights.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in stored)
    assert {name.split(".")[0] for name in stored} == towers | {"connector"}
    manifest = read_manifest(tmp_path / "merged")
    assert (manifest.config.lora, manifest.adapted) == (LoRATowers(), set())
    assert not manifest.fingerprints.keys() & towers


def test_merged_checkpoint_opens_without_peft(trained, tmp_path, monkeypatch):
    merge(trained(rank=4), tmp_path / "merged")
    monkeypatch.setitem(sys.modules, "peft", None)
    load(tmp_path / "merged", precision="fp32")


def test_dtype_is_that_of_the_merged_towers_and_its_rounding_is_measured(trained, chat_batch, tmp_path):
    folder = trained(rank=4)
    done = merge(folder, tmp_path / "merged", dtype="bf16")
    stored = load_file(tmp_path / "merged" / "weights.safetensors")
    assert {(name.split(".")[0], tensor.dtype) for name, tensor in stored.items()} == {("language", torch.bfloat16), ("connector", torch.float32)}
    assert 1e-5 < done.rounding < 0.1 * done.largest
    before, after = load(folder, precision="fp32"), load(tmp_path / "merged", precision="fp32")
    batch = chat_batch(before, TALK)
    torch.testing.assert_close(logits(after, batch), logits(before, batch), atol=0.1, rtol=0.1)


def test_checkpoint_without_an_adapter_is_refused(compose, config, tmp_path):
    save(compose(trained=("connector",)), config(), tmp_path / "step")
    with pytest.raises(CheckpointError, match="has no adapter, so there is nothing to merge"):
        merge(tmp_path / "step", tmp_path / "merged")


def test_existing_folder_is_refused_before_anything_is_loaded(trained, tmp_path, monkeypatch):
    folder = trained(rank=2)
    (tmp_path / "merged").mkdir()
    monkeypatch.setattr("vlm.models.checkpoint.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match=r"merged exists. Name a folder that does not exist"):
        merge(folder, tmp_path / "merged")


def test_full_disk_is_refused_with_both_sizes(trained, tmp_path, monkeypatch):
    folder = trained(rank=2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(CheckpointError, match=r"merged needs 0.0 GB, 0.0 GB are free. Free space"):
        merge(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_that_changes_the_logits_writes_nothing(trained, tmp_path, monkeypatch):
    folder = trained(rank=2)
    monkeypatch.setattr("vlm.backbones.lora.folded_weight", lambda layer: layer.get_base_layer().weight.detach())
    with pytest.raises(CheckpointError, match=r"has other logits: they differ by .* Nothing is written"):
        merge(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra qlora)")
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapter_over_a_quantized_tower_saves_loads_and_merges(config, chat_batch, tmp_path, kind):
    """Its fingerprint is that of the weights before they were quantized, so saving and loading see the same tower."""
    composition = replace(config(), lora=LoRATowers(language=LoRAConfig(rank=2, targets="all-linear", kind=kind, quantize="nf4")))
    model = build(composition, precision="fp32", trained=("connector", "language"))
    stir(model)
    save(model, composition, tmp_path / "step")
    assert read_manifest(tmp_path / "step").fingerprints["language"]
    loaded, batch = load(tmp_path / "step", precision="fp32"), chat_batch(model, TALK)
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), atol=1e-6, rtol=1e-6)
    done = merge(tmp_path / "step", tmp_path / "merged")
    assert done.difference < 1e-5 * max(1, done.largest)
    torch.testing.assert_close(
        logits(load(tmp_path / "merged", precision="fp32"), batch), logits(model, batch), atol=1e-5 * max(1.0, done.largest), rtol=0
    )

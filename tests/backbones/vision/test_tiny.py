from pathlib import Path

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision.tiny import SPECS
from vlm.types import VisionBackbone


@pytest.mark.parametrize("name", sorted(SPECS))
def test_same_name_gives_the_same_weights_and_leaves_the_random_state_alone(name: str):
    first = SPECS[name].build(SPECS[name], Load(source="random"))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = SPECS[name].build(SPECS[name], Load(source=None))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_tower_is_a_vision_backbone_of_the_size_that_its_spec_says(name: str, tiles):
    spec = SPECS[name]
    tower = spec.build(spec, Load(source=spec.source))
    assert isinstance(tower, VisionBackbone)
    assert tower(tiles(32)).shape == (2, spec.num_patches, spec.width)
    assert sum(parameter.numel() for parameter in tower.parameters()) == spec.num_parameters


@pytest.mark.parametrize("name", sorted(SPECS))
def test_tower_runs_in_bf16(name: str, tiles):
    tower = SPECS[name].build(SPECS[name], Load(source=None, dtype=torch.bfloat16))
    features = tower(tiles(32))
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), SPECS[name].build(SPECS[name], Load(source=None))(tiles(32)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_reach_the_first_weight(name: str, tiles):
    tower = SPECS[name].build(SPECS[name], Load(source=None))
    tower(tiles(32)).square().mean().backward()
    patch = next(module for module in tower.modules() if isinstance(module, torch.nn.Conv2d))
    assert patch.weight.grad.abs().sum() > 0


def test_saved_tower_is_loaded_instead_of_random_weights(tmp_path: Path, tiles):
    spec = SPECS["tiny-clip"]
    tower = spec.build(spec, Load(source=None))
    with torch.no_grad():
        tower.model.embeddings.class_embedding.add_(1)
    tower.model.save_pretrained(tmp_path)
    loaded = spec.build(spec, Load(source=tmp_path))(tiles(32))
    assert torch.equal(loaded, tower(tiles(32)))
    assert not torch.equal(loaded, spec.build(spec, Load(source=None))(tiles(32)))

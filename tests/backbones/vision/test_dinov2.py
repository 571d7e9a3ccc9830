from pathlib import Path

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision.dinov2 import SPECS
from vlm.backbones.vision.tiny import SPECS as TINY


@pytest.mark.parametrize("feature_layer", [None, -1, -3, 0, 1, 3])
def test_patch_features_equal_the_hidden_states_of_transformers(feature_layer: int | None, tiles, processed):
    spec = TINY["tiny-dinov2"]
    tower = spec.build(spec, Load(source=None, feature_layer=feature_layer))
    hidden = tower.model(processed(tiles(32), spec), output_hidden_states=True).hidden_states
    expected = hidden[-2 if feature_layer is None else feature_layer][:, 5:]  # class token and four registers
    torch.testing.assert_close(tower(tiles(32)), expected, rtol=0, atol=1e-5)


def test_pooled_vector_is_the_normed_class_token(tiles, processed):
    spec = TINY["tiny-dinov2"]
    tower = spec.build(spec, Load(source=None))
    expected = tower.model(processed(tiles(32), spec)).last_hidden_state[:, 0]
    torch.testing.assert_close(tower.pooled(tiles(32)), expected, rtol=0, atol=1e-5)


def test_tower_loads_from_a_folder_in_the_layout_of_the_hub(tmp_path: Path, tiles):
    spec = TINY["tiny-dinov2"]
    tower = spec.build(spec, Load(source=None))
    tower.model.save_pretrained(tmp_path)
    with torch.no_grad():
        tower.model.embeddings.register_tokens.add_(1)
    changed = spec.build(spec, Load(source=None))
    loaded = spec.build(spec, Load(source=tmp_path))
    assert torch.equal(loaded(tiles(32)), changed(tiles(32)))


def test_side_that_the_patch_does_not_divide_is_cut_off():
    assert SPECS["dinov2-l14-reg-384"].num_patches == 27 * 27


@pytest.mark.parametrize("name", SPECS)
def test_parameter_count_is_what_the_architecture_comes_to(name: str):
    size = SPECS[name].architecture
    d, patch, registers = size["hidden_size"], size["patch_size"], size["num_register_tokens"]
    f = d * size["mlp_ratio"]
    attention, mlp, norm, layer_scale = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d, d
    positions = (size["image_size"] // patch) ** 2 + 1
    embeddings = (2 + registers + positions) * d + 3 * patch * patch * d + d  # class and mask token
    assert SPECS[name].num_parameters == embeddings + size["num_hidden_layers"] * (attention + mlp + 2 * norm + 2 * layer_scale) + norm

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision.siglip import SPECS
from vlm.backbones.vision.tiny import SPECS as TINY


@pytest.mark.parametrize("feature_layer", [None, -1, -3, 0, 1, 3])
def test_patch_features_equal_the_hidden_states_of_transformers(feature_layer: int | None, tiles, processed):
    spec = TINY["tiny-siglip"]
    tower = spec.build(spec, Load(source=None, feature_layer=feature_layer))
    hidden = tower.model(processed(tiles(32), spec), output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(tiles(32)), hidden[-2 if feature_layer is None else feature_layer], rtol=0, atol=1e-5)


def test_pooled_vector_is_the_attention_pooling_of_transformers(tiles, processed):
    spec = TINY["tiny-siglip"]
    tower = spec.build(spec, Load(source=None))
    torch.testing.assert_close(tower.pooled(tiles(32)), tower.model(processed(tiles(32), spec)).pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_parameter_count_is_what_the_architecture_comes_to(name: str):
    size = SPECS[name].architecture
    d, f, patch = size["hidden_size"], size["intermediate_size"], size["patch_size"]
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d
    embeddings = 3 * patch * patch * d + d + SPECS[name].num_patches * d
    pooling = d + attention + norm + mlp
    assert SPECS[name].num_parameters == embeddings + size["num_hidden_layers"] * (attention + mlp + 2 * norm) + norm + pooling

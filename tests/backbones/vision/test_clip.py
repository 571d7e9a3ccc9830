import pytest
import torch
from torch.nn.functional import gelu

from vlm.backbones.loading import Load
from vlm.backbones.vision.clip import SPECS, clip, clip_with_gelu
from vlm.backbones.vision.tiny import SPECS as TINY


@pytest.mark.parametrize("feature_layer", [None, -1, -3, 0, 1, 3])
def test_patch_features_equal_the_hidden_states_of_transformers(feature_layer: int | None, tiles, processed):
    spec = TINY["tiny-clip"]
    tower = spec.build(spec, Load(source=None, feature_layer=feature_layer))
    hidden = tower.model(processed(tiles(32), spec), output_hidden_states=True).hidden_states
    expected = hidden[-2 if feature_layer is None else feature_layer][:, 1:]
    torch.testing.assert_close(tower(tiles(32)), expected, rtol=0, atol=1e-5)


def test_pooled_vector_is_the_normed_class_token(tiles, processed):
    spec = TINY["tiny-clip"]
    tower = spec.build(spec, Load(source=None))
    class_token = tower.model(processed(tiles(32), spec), output_hidden_states=True).hidden_states[-1][:, 0]
    torch.testing.assert_close(tower.pooled(tiles(32)), tower.model.post_layernorm(class_token), rtol=0, atol=1e-5)


def test_published_activation_is_quick_gelu_and_prismatic_dinoclip_variant_is_gelu():
    spec, x = TINY["tiny-clip"], torch.linspace(-3, 3, 31)
    activation = clip(spec, Load(source=None)).blocks()[0].mlp.activation_fn
    torch.testing.assert_close(activation(x), x * torch.sigmoid(1.702 * x))
    for layer in clip_with_gelu(spec, Load(source=None)).blocks():
        torch.testing.assert_close(layer.mlp.activation_fn(x), gelu(x))


@pytest.mark.parametrize("name", SPECS)
def test_parameter_count_is_what_the_architecture_comes_to(name: str):
    size = SPECS[name].architecture
    d, f, patch = size["hidden_size"], size["intermediate_size"], size["patch_size"]
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * f + f + d, 2 * d
    embeddings = d + 3 * patch * patch * d + (SPECS[name].num_patches + 1) * d
    assert SPECS[name].num_parameters == embeddings + size["num_hidden_layers"] * (attention + mlp + 2 * norm) + 2 * norm

"""Every connector: shapes, token counts, refusals, and the ridge start against least squares."""

import pytest
import torch

from vlm.connectors import CONNECTORS
from vlm.connectors.base import ridge_start
from vlm.connectors.linear import Linear
from vlm.connectors.pixel_shuffle import shuffle
from vlm.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize("name", [*CONNECTORS, "mlp:20x30@silu"])
def test_connector_makes_as_many_tokens_as_its_spec_says(name):
    spec = CONNECTORS[name]
    in_width, out_width, patches = (8, 8, 144) if name == "identity" else (8, 12, 144)
    out = spec.build(in_width, out_width)(torch.randn(2, patches, in_width))
    assert out.shape == (2, spec.num_tokens(patches), out_width)


@pytest.mark.parametrize(("ours", "prismatic"), [("mlp2x-gelu", "gelu-mlp"), ("fused-mlp", "fused-gelu-mlp"), ("linear", "linear")])
def test_prismatic_names_are_aliases(ours, prismatic):
    assert CONNECTORS.resolve(prismatic) == ours


def test_llava_7b_connector_has_the_published_size():
    connector = CONNECTORS["mlp2x-gelu"].build(1024, 4096)
    assert sum(p.numel() for p in connector.parameters()) == 20_979_712  # facts/model_zoo.md D1: 20.98 M


def test_prismatic_fused_mlp_widths():
    widths = [tuple(p.shape) for p in CONNECTORS["fused-mlp"].build(6, 5).parameters() if p.ndim == 2]
    assert widths == [(24, 6), (5, 24), (5, 5)]


def test_typo_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"No connector named 'pixelshufle-2x'\. Did you mean 'pixel-shuffle-2x'"):
        CONNECTORS["pixelshufle-2x"]


def test_identity_refuses_other_widths():
    with pytest.raises(ConfigError, match="equal widths; the vision backbone has 3, the language model 4"):
        CONNECTORS["identity"].build(3, 4)


def test_pixel_shuffle_refuses_an_odd_grid():
    with pytest.raises(ConfigError, match="needs a square grid with side divisible by 2; got 729 patches"):
        CONNECTORS["pixel-shuffle-2x"].num_tokens(729)


def test_bad_mlp_text_is_refused_with_an_example():
    with pytest.raises(ConfigError, match="mlp:8192x4096@gelu"):
        CONNECTORS["mlp:wide"]


def test_shuffle_joins_neighbors():
    grid = torch.arange(16.0).view(1, 16, 1)
    assert shuffle(grid, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_ridge_start_of_linear_connector_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 4, 6, generator=generator) * 3 + 1
    weight, bias = torch.randn(5, 6, generator=generator), torch.randn(5, generator=generator)
    targets = features.mean(1) @ weight.T + bias
    connector = Linear(6, 5)
    explained = ridge_start(connector, features, targets)
    predicted = connector(features).mean(1)
    assert explained > 0.999
    assert (predicted - targets).abs().max() < 0.15 * targets.std()


@pytest.mark.parametrize("name", ["mlp2x-gelu", "standardized-mlp2x", "pixel-shuffle-2x"])
def test_ridge_start_fits_the_last_layer_of_a_deeper_connector(name):
    features = torch.randn(300, 4, 6)
    targets = features.mean(1) @ torch.randn(6, 16) if name != "pixel-shuffle-2x" else features.flatten(1) @ torch.randn(24, 16)
    assert ridge_start(CONNECTORS[name].build(6, 16), features, targets) > 0.3


@pytest.mark.parametrize("name", ["linear", "standardized-mlp2x"])
def test_statistics_of_a_bf16_connector_stay_fp32_and_are_stored_so(name):
    features = torch.randn(50, 6) * 3 + 1
    connector, other = (CONNECTORS[name].build(6, 5).to(torch.bfloat16) for _ in range(2))
    connector.standardize.fit(features)
    other.load_state_dict(connector.state_dict())
    other.to(torch.bfloat16)
    assert torch.equal(other.standardize.mean, features.mean(0))
    assert torch.equal(other.standardize.scale, 1 / features.std(0))
    assert {weight.dtype for weight in other.parameters()} == {torch.bfloat16}
    assert other(features[None].bfloat16()).dtype == torch.bfloat16


def test_ridge_start_refuses_a_connector_without_weights():
    with pytest.raises(ConfigError, match="ends in a linear layer"):
        ridge_start(CONNECTORS["identity"].build(4, 4), torch.randn(5, 2, 4), torch.randn(5, 4))

"""Connectors as two linear layers: the same function, and reasons where they are none."""

import pytest
import torch
from torch.nn import functional as F

from vlm.connectors import CONNECTORS
from vlm.connectors.base import Standardize
from vlm.errors import ConfigError
from vlm.export.two_layers import as_two_layers, whole

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "linear": lambda x: x,
}


def make(name: str, in_width: int = 8, out_width: int = 24):
    connector = CONNECTORS[name].build(in_width, out_width).double()
    for module in connector.modules():
        if isinstance(module, Standardize):
            module.mean, module.scale = torch.rand(in_width), torch.rand(in_width) + 0.5
    return connector


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("mlp2x-gelu", "gelu"),
        ("standardized-mlp2x", "gelu"),
        ("mlp:10@gelu-tanh", "gelu_pytorch_tanh"),
        ("mlp:24@silu", "silu"),
        ("mlp:5@relu", "relu"),
        ("linear", "relu"),
    ],
)
def test_function_is_the_connectors(name, activation):
    connector, features = make(name), torch.randn(2, 3, 8, dtype=torch.float64)
    layers = as_two_layers(connector, 8, width=24)
    assert layers.activation == activation
    assert layers.first.weight.shape == (24, 8)
    hidden = ACTIVATIONS[activation](F.linear(features, *whole(layers.first)))
    torch.testing.assert_close(F.linear(hidden, *whole(layers.second)), connector(features), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("width", "through", "expected"), [(12, "relu", "linear"), (None, "gelu", "gelu"), (16, "relu", "relu")])
def test_linear_connector_goes_through_an_activation_where_there_is_room(width, through, expected):
    connector, features = make("linear", out_width=12), torch.randn(2, 3, 8, dtype=torch.float64)
    layers = as_two_layers(connector, 8, width=width, through=through)
    assert layers.activation == expected
    hidden = ACTIVATIONS[expected](F.linear(features, *whole(layers.first)))
    torch.testing.assert_close(F.linear(hidden, *whole(layers.second)), connector(features))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mlp3x-gelu", "an MLP of 3 linear layers; LLaVA's projector is two"),
        ("pixel-shuffle-2x", "of the class PixelShuffle"),
        ("mlp:25@gelu", "inner layer is 25 wide.*as wide as the language model's embeddings, 24"),
    ],
)
def test_other_connectors_are_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=reason):
        as_two_layers(make(name), 8, width=24)

"""A connector as two linear layers with an activation between them, the form of LLaVA's projector, in fp64. Knows no format.

A linear connector has that form too: relu(x) - relu(-x) = x, in every precision, and gelu(x) - gelu(-x) = x.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.connectors.base import Standardize
from vlm.connectors.linear import Identity, Linear
from vlm.connectors.mlp import MLP
from vlm.errors import ConfigError
from vlm.export.folding import LinearMap, identity

NO_ACTIVATION = "linear"  # transformers' name


@dataclass(frozen=True)
class TwoLayers:
    """second(activation(first(features))).

    Attributes:
        first: The layer that reads patch features.
        activation: By transformers' name.
        second: The layer that writes embeddings.
    """

    first: LinearMap
    activation: str
    second: LinearMap

    def tensors(self) -> dict[str, Float[Tensor, "..."]]:
        """Weights and biases in fp32: `linear_1.weight` and so on."""
        layers = {"linear_1": self.first, "linear_2": self.second}
        return {
            f"{name}.{kind}": tensor.float() for name, layer in layers.items() for kind, tensor in zip(("weight", "bias"), whole(layer), strict=True)
        }


def whole(layer: LinearMap) -> tuple[Tensor, Tensor]:
    """Weight and bias; zeros for a layer without one."""
    return layer.weight, layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def as_two_layers(connector: nn.Module, in_width: int, *, width: int | None = None, through: str = "relu") -> TwoLayers:
    """The two layers that compute what a connector does.

    Args:
        connector: The connector.
        in_width: Width of the patch features.
        width: Width that the inner layer must have; None for any. A narrower one is filled up with zeros.
        through: Activation that a linear connector goes through where the width allows it: relu or gelu.

    Raises:
        ConfigError: If it is no such connector.
    """
    if isinstance(connector, Linear | Identity):
        layers = _linear(_linear_map(connector, in_width), _statistics(connector, in_width), width, through)
    elif isinstance(connector, MLP) and sum(isinstance(module, nn.Linear) for module in connector.body) == 1:
        *_, layer, activation = connector.body
        layers = TwoLayers(LinearMap.of(layer).after(_statistics(connector, in_width)), activation_name(activation), LinearMap.of(connector.readout))  # type: ignore[arg-type]
    else:
        raise ConfigError(f"the connector is {_described(connector)}; LLaVA's projector is two linear layers with an activation between them")
    return layers if width is None else _filled_up(layers, width)


def _described(connector: nn.Module) -> str:
    if isinstance(connector, MLP):
        return f"an MLP of {sum(isinstance(module, nn.Linear) for module in connector.body) + 1} linear layers"
    return f"of the class {type(connector).__name__}"


def _linear_map(connector: Any, in_width: int) -> LinearMap:
    return identity(in_width) if isinstance(connector, Identity) else LinearMap.of(connector.readout)


def _linear(linear: LinearMap, statistics: LinearMap, width: int | None, through: str) -> TwoLayers:
    if width is not None and 2 * len(statistics.weight) > width:
        return TwoLayers(linear.after(statistics), NO_ACTIVATION, identity(len(linear.weight)))
    weight, bias = whole(statistics)
    return TwoLayers(
        LinearMap(torch.cat([weight, -weight]), torch.cat([bias, -bias])),
        through,
        LinearMap(torch.cat([linear.weight, -linear.weight], dim=1), linear.bias),
    )


def _statistics(connector: Any, in_width: int) -> LinearMap:
    """The standardization in front as a linear map."""
    norm = getattr(connector, "standardize", None)
    if not isinstance(norm, Standardize):
        return identity(in_width)
    scale, mean = norm.scale.detach().double(), norm.mean.detach().double()
    return LinearMap(torch.diag(scale), -scale * mean)


def activation_name(activation: nn.Module) -> str:
    """transformers' name of an activation."""
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else "gelu_pytorch_tanh"
    return "relu" if isinstance(activation, nn.ReLU) else "silu"


def _filled_up(layers: TwoLayers, width: int) -> TwoLayers:
    """Inner rows of zeros that the second layer does not read."""
    (weight, bias), inner = whole(layers.first), len(layers.first.weight)
    if inner > width:
        raise ConfigError(f"the connector's inner layer is {inner} wide; LLaVA's projector is as wide as the language model's embeddings, {width}")
    pad, more = torch.nn.functional.pad, width - inner
    second = LinearMap(pad(layers.second.weight, (0, more)), layers.second.bias)
    return TwoLayers(LinearMap(pad(weight, (0, 0, 0, more)), pad(bias, (0, more))), layers.activation, second)

"""Alignment heads as one linear map, and where its bias can hide: what a foreign model must hold of a head. Knows no format.

Vectors are compared by their cosines, so a factor that is the same for all of them may be left out; a bias may not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.connectors.base import Standardize
from vlm.errors import ConfigError
from vlm.models.alignment_head import AlignmentHead, UnitLength

LEFT_OVER = 1e-6  # of a bias, as a share of its length, that may miss the range of a projection: rounding of fp32 weights
BARE = "a linear layer without bias is --model.{side}-head.kind ape with --model.{side}-head.num-layers 1"


@dataclass(frozen=True)
class LinearMap:
    """y = weight x + bias, in fp64, so that folding adds no rounding of its own.

    Attributes:
        weight: The weight.
        bias: The bias; None for none.
    """

    weight: Float[Tensor, "J D"]
    bias: Float[Tensor, " J"] | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> "LinearMap":
        """The map of a layer."""
        return cls(layer.weight.detach().double(), None if layer.bias is None else layer.bias.detach().double())

    def after(self, first: "LinearMap") -> "LinearMap":
        """This map of the other's output."""
        moved = None if first.bias is None else self.weight @ first.bias
        biases = [bias for bias in (self.bias, moved) if bias is not None]
        return LinearMap(self.weight @ first.weight, sum(biases[1:], biases[0]) if biases else None)


def identity(width: int) -> LinearMap:
    """The map that changes nothing."""
    return LinearMap(torch.eye(width, dtype=torch.float64))


def head_map(head: AlignmentHead, side: str) -> LinearMap | None:
    """What a head does to the direction of a vector, as one linear map; None for a side without a head.

    Args:
        head: The head.
        side: image or text, for messages.

    Raises:
        ConfigError: If it is no linear map.
    """
    if head.options.kind == "identity":
        return None
    layer = head.adaptor[0] if isinstance(head.adaptor, nn.Sequential) and len(head.adaptor) == 1 else head.adaptor
    if not isinstance(layer, nn.Linear):
        raise ConfigError(f"the {side} head is of kind {head.options.kind!r}, which is not linear, so no projection of a published model can hold it")
    linear = LinearMap.of(layer)
    if linear.bias is not None and not linear.bias.any():
        linear = LinearMap(linear.weight)
    return _normalized(linear, head.normalize, side)


def _normalized(linear: LinearMap, normalize: Any, side: str) -> LinearMap:
    """The map of vectors that are not normalized yet."""
    if isinstance(normalize, nn.Identity):
        return linear
    if isinstance(normalize, Standardize):
        scale, mean = normalize.scale.detach().double(), normalize.mean.detach().double()
        return linear.after(LinearMap(torch.diag(scale), -scale * mean))
    if isinstance(normalize, UnitLength) and linear.bias is None:
        return linear
    why = (
        f"a bias behind it counts more the shorter a vector is; {BARE.format(side=side)}"
        if isinstance(normalize, UnitLength)
        else "each vector is divided by its own deviation"
    )
    raise ConfigError(f"the {side} head normalizes its input by {_name(normalize)}, which cannot be folded into weights: {why}")


def _name(normalize: nn.Module) -> str:
    return "l2" if isinstance(normalize, UnitLength) else "layernorm"


def hide_bias(linear: LinearMap, norm: nn.LayerNorm, side: str) -> Float[Tensor, " D"]:
    """The bias that the layer norm before a projection must have so that the projection needs none, in fp64.

    What the norm adds to each vector passes through the projection alone: with weight c = bias, c takes the bias' place.

    Args:
        linear: The map from the norm's output on.
        norm: The norm, whose output reaches nothing but the map, or a mean over tokens and the map.
        side: image or text, for messages.

    Raises:
        ConfigError: If no c gives the bias, because the map's outputs do not span the joint space.
    """
    own = norm.bias.detach().double()
    if linear.bias is None:
        return own
    added = torch.linalg.lstsq(linear.weight, linear.bias[:, None], driver="gelsd").solution[:, 0]
    if torch.linalg.vector_norm(linear.weight @ added - linear.bias) > LEFT_OVER * torch.linalg.vector_norm(linear.bias):
        outputs, inputs = linear.weight.shape
        raise ConfigError(
            f"the {side} head has a bias, for which the format has no place, and its map of {inputs} values to {outputs} does not reach it from the layer "
            f"norm before; "
            f"{BARE.format(side=side)}"
        )
    return own + added

"""What a connector is (`ConnectorSpec`), and what connectors share: input standardization and the ridge-regression start. Knows no tower."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.errors import ConfigError

RIDGE_PENALTY = 1e-2  # share of the mean feature variance, added to the diagonal


@dataclass(frozen=True, kw_only=True)
class ConnectorSpec:
    """One connector, known before it is built.

    Attributes:
        build: Makes the module from input and output width.
        num_tokens: Tokens of a tile with a given number of patches; raises ConfigError where the connector cannot take them.
        paper: Where it is described.
        aliases: Other names, among them Prismatic's.
    """

    build: Callable[[int, int], nn.Module]
    num_tokens: Callable[[int], int] = lambda num_patches: num_patches
    paper: str
    aliases: tuple[str, ...] = ()


class Standardize(nn.Module):
    """Per-channel standardization with fixed statistics, the identity until `fit`; in fp32 whatever the type of the connector."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int):
        """Start as the identity."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Standardize":
        """Follow the connector to another device; `.to(bfloat16)` must not round the statistics."""
        before = {"mean": self.mean, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, exact in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, moved.float() if exact.is_meta else exact.to(moved.device))
        return self

    def forward(self, features: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """`(features - mean) * scale`, in the type of the features."""
        return ((features - self.mean) * self.scale).to(features.dtype)

    def fit(self, features: Float[Tensor, "rows D"]) -> None:
        """Take mean and deviation from data."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp_min(1e-6))


def check_ridge(connector: nn.Module) -> None:
    """Make sure that a connector has a last layer for `ridge_start` to set.

    Raises:
        ConfigError: If it does not end in a linear layer.
    """
    if not isinstance(getattr(connector, "readout", None), nn.Linear):
        raise ConfigError(
            f"connector_init ridge needs a connector that ends in a linear layer; {type(connector).__name__} does not. Use connector_init random."
        )


@torch.no_grad()
def ridge_start(connector: Any, features: Float[Tensor, "samples P D"], targets: Float[Tensor, "samples E"]) -> float:
    """Set a connector's last linear layer so that the mean of its tokens predicts the targets, by ridge regression in closed form.

    The layers before the last keep their random values; for a linear connector this is the least-squares solution. The connector needs
    `standardize` (a Standardize or None), `body` (all layers but the last) and `readout` (the last, linear).

    Returns:
        Share of the targets' variance that the fit explains, at most 1.

    Raises:
        ConfigError: If the connector is not of that form.
    """
    check_ridge(connector)
    if connector.standardize is not None:
        connector.standardize.fit(features.flatten(0, 1))
    inputs = connector.body(features).mean(1).double()  # [samples, width of the last layer's input]
    center, target_center = inputs.mean(0), targets.double().mean(0)
    x, y = inputs - center, targets.double() - target_center
    gram = x.T @ x / len(x)
    penalty = RIDGE_PENALTY * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty, x.T @ y / len(x)).T
    connector.readout.weight.copy_(weight)
    connector.readout.bias.copy_(target_center - weight @ center)
    return float(1 - (y - x @ weight.T).square().sum() / y.square().sum())

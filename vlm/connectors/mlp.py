"""Multi-layer perceptrons of any depth and width: the connectors of LLaVA 1.5, of Prismatic's fused towers, and `mlp:<widths>`."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlm.connectors.base import ConnectorSpec, Standardize
from vlm.errors import ConfigError

LLAVA15 = "LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744)"
PRISMATIC = "Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865)"

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """Linear layers with an activation between them, the last one `readout`."""

    standardize: Standardize | None = None

    def __init__(self, in_width: int, out_width: int, *, hidden: Sequence[int] | Callable[[int, int], Sequence[int]], activation: str = "gelu"):
        """Stack the layers.

        Args:
            in_width: Width of the patch features.
            out_width: Width of the language model's embeddings.
            hidden: Widths of the hidden layers, or a function of both widths that gives them.
            activation: A key of ACTIVATIONS.
        """
        super().__init__()
        widths = [in_width, *(hidden(in_width, out_width) if callable(hidden) else hidden)]
        layers = [(nn.Linear(a, b), ACTIVATIONS[activation]()) for a, b in pairwise(widths)]
        self.body = nn.Sequential(*(module for layer in layers for module in layer))
        self.readout = nn.Linear(widths[-1], out_width)

    def forward(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N P E"]:
        """One embedding a patch."""
        return self.readout(self.body(features))


class StandardizedMLP(MLP):
    """An MLP behind fixed per-channel statistics, for features of very different scale; fitted by connector_init ridge."""

    def __init__(self, in_width: int, out_width: int, *, hidden: Callable[[int, int], Sequence[int]]):
        """Stack the layers; see MLP."""
        super().__init__(in_width, out_width, hidden=hidden)
        self.body = nn.Sequential(Standardize(in_width), *self.body)

    @property
    def standardize(self) -> Standardize:  # type: ignore[override]
        """The statistics in front of the layers."""
        first: Any = self.body[0]
        return first


def output_wide(num_hidden: int) -> Callable[[int, int], list[int]]:
    """Hidden layers as wide as the output, LLaVA's rule."""
    return lambda _, out_width: [out_width] * num_hidden


def four_times_input(in_width: int, out_width: int) -> list[int]:
    """Prismatic's widths for fused towers: four times the input, then the output."""
    return [4 * in_width, out_width]


def parse(text: str) -> ConnectorSpec:
    """`8192x4096@silu` as a connector: hidden widths, then an activation (GELU if not named).

    Raises:
        ConfigError: If the text is not of that form.
    """
    widths, _, activation = text.partition("@")
    activation = activation or "gelu"
    if activation not in ACTIVATIONS or not all(part.isdigit() and int(part) > 0 for part in widths.split("x")):
        raise ConfigError(
            f"Connector 'mlp:{text}' is not mlp:<width>x<width>...@<activation>; for example mlp:8192x4096@gelu. Activations: {', '.join(ACTIVATIONS)}."
        )
    hidden = [int(part) for part in widths.split("x")]
    return ConnectorSpec(build=partial(MLP, hidden=hidden, activation=activation), paper=LLAVA15)


SPECS = {
    "mlp2x-gelu": ConnectorSpec(build=partial(MLP, hidden=output_wide(1)), paper=LLAVA15, aliases=("gelu-mlp", "mlp2x_gelu")),
    "mlp3x-gelu": ConnectorSpec(build=partial(MLP, hidden=output_wide(2)), paper=LLAVA15, aliases=("mlp3x_gelu",)),
    "fused-mlp": ConnectorSpec(build=partial(MLP, hidden=four_times_input), paper=PRISMATIC, aliases=("fused-gelu-mlp",)),
    "standardized-mlp2x": ConnectorSpec(build=partial(StandardizedMLP, hidden=output_wide(1)), paper=LLAVA15),
}
OPEN_SPECS = {"mlp:<width>x<width>@<activation>": parse}

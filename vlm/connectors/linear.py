"""One linear layer, and none: the smallest connectors."""

from jaxtyping import Float
from torch import Tensor, nn

from vlm.connectors.base import ConnectorSpec, Standardize
from vlm.errors import ConfigError


class Linear(nn.Module):
    """Standardize, then one linear layer."""

    def __init__(self, in_width: int, out_width: int):
        """Widths of patch features and of language-model embeddings."""
        super().__init__()
        self.standardize = Standardize(in_width)
        self.readout = nn.Linear(in_width, out_width)

    def body(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N P D"]:
        """Input of the linear layer."""
        return self.standardize(features)

    def forward(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N P E"]:
        """One embedding a patch."""
        return self.readout(self.body(features))


class Identity(nn.Module):
    """Patch features as they are, for towers that already share the language model's width."""

    def __init__(self, in_width: int, out_width: int):
        """Refuse widths that differ."""
        super().__init__()
        if in_width != out_width:
            raise ConfigError(
                f"Connector 'identity' needs equal widths; the vision backbone has {in_width}, the language model {out_width}. Use 'linear'."
            )

    def forward(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N P D"]:
        """The features themselves."""
        return features


SPECS = {
    "linear": ConnectorSpec(build=Linear, paper="LLaVA (Liu et al. 2023, arXiv:2304.08485)"),
    "identity": ConnectorSpec(build=Identity, paper=""),
}

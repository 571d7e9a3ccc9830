"""Alignment heads: small modules that carry the vectors of a frozen encoder into the joint space of images and texts. They know no encoder and no loss.

Every kind stands in KINDS with the paper that it follows. Weights are named after published ones, below `adaptor.`, so that those load strictly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlm.conf.contrastive import HeadConfig
from vlm.connectors.base import Standardize
from vlm.errors import ConfigError, UnknownNameError

LEAST_DEVIATION = 1e-3  # of a channel, as a share of the mean one: a channel that hardly moves must not become noise of size 1
RELU_GAIN = math.sqrt(2)  # half of what enters a ReLU comes out (He et al. 2015, arXiv:1502.01852)


@dataclass(frozen=True)
class Sizes:
    """What a kind is built from."""

    in_width: int
    out_width: int
    hidden_width: int
    num_layers: int
    dropout: float


@dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
        build: Makes the module.
        paper: Where it is described.
        hidden_factor: Hidden width as a multiple of the input width; None: there is no hidden layer.
        num_layers: Number of layers where none is asked for; None: it is fixed.
    """

    build: Callable[[Sizes], nn.Module]
    paper: str
    hidden_factor: int | None = None
    num_layers: int | None = None


def check_head(config: HeadConfig) -> None:
    """Refuse what no kind of head can be built from; `HeadConfig` itself refuses numbers out of range.

    Raises:
        UnknownNameError: If the kind or the normalization is unknown.
        ConfigError: If a setting has no effect on this kind.
    """
    if config.kind not in KINDS:
        raise UnknownNameError("alignment head", config.kind, KINDS)
    if config.normalize_input not in NORMALIZERS:
        raise UnknownNameError("input normalization", config.normalize_input, NORMALIZERS)
    kind = KINDS[config.kind]
    idle = {
        "hidden_width": config.hidden_width is not None and kind.hidden_factor is None,
        "num_layers": config.num_layers is not None and kind.num_layers is None,
        "dropout": config.dropout > 0 and kind.hidden_factor is None,
        "normalize_input": config.normalize_input != "none" and config.kind == "identity",
        "start": config.start != "random" and config.kind != "linear",
    }
    for name in (name for name, is_idle in idle.items() if is_idle):
        raise ConfigError(
            f"An alignment head of kind {config.kind!r} has no use for {name} {getattr(config, name)!r}. Leave it out, or take another kind."
        )


class AlignmentHead(nn.Module):
    """Vectors of an encoder to vectors of the joint space, not normalized: the losses and `DualEncoder` do that."""

    def __init__(self, in_width: int, out_width: int, options: HeadConfig):
        """Build the head; its start depends on torch's random numbers alone.

        Args:
            in_width: Width of the encoder's vectors.
            out_width: Width of the joint space.
            options: Kind and sizes.

        Raises:
            UnknownNameError: If there is no such kind.
            ConfigError: If a setting has no effect on the kind, or the widths differ and the head is the identity, or starts as it.
        """
        super().__init__()
        check_head(options)
        if options.kind == "identity" and in_width != out_width:
            raise ConfigError(
                f"A side without a head must have the joint space's width; this encoder has {in_width}, the joint space {out_width}. "
                f"Give the side a head ('linear' is the smallest), or take the joint width {in_width}."
            )
        if options.start == "identity" and in_width != out_width:
            raise ConfigError(
                f"A head that starts as the identity keeps the width; this encoder has {in_width}, the joint space {out_width}. "
                f"Take the joint width {in_width}, or let the head start at random."
            )
        kind = KINDS[options.kind]
        hidden = options.hidden_width or in_width * (kind.hidden_factor or 1)
        self.in_width, self.out_width, self.options = in_width, out_width, options
        self.normalize: Any = NORMALIZERS[options.normalize_input](in_width)
        self.adaptor = kind.build(Sizes(in_width, out_width, hidden, options.num_layers or kind.num_layers or 1, options.dropout))
        if options.start == "identity":
            nn.init.eye_(self.adaptor.get_parameter("weight"))  # of a linear head alone, whose shift starts at 0

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        """Vectors of the joint space; the input may be of any type, cached vectors are fp16."""
        features = self.normalize(features.float())
        weight = next(self.adaptor.parameters(), None)
        return self.adaptor(features if weight is None else features.to(weight.dtype))

    def standardize_with(self, mean: Float[Tensor, " D"], deviation: Float[Tensor, " D"]) -> None:
        """Set the statistics of `standardize`, which are stored with the weights.

        Args:
            mean: Mean of each channel of the encoder's vectors, as the feature cache counts it.
            deviation: Standard deviation of each channel.

        Raises:
            ConfigError: If the head does not standardize.
        """
        if not isinstance(self.normalize, Standardize):
            raise ConfigError(f"This alignment head has normalize_input {self.options.normalize_input!r}, so statistics have no effect.")
        self.normalize.mean.copy_(mean)
        self.normalize.scale.copy_(1 / deviation.clamp_min(LEAST_DEVIATION * float(deviation.mean())))


class InputNorm(nn.LayerNorm):
    """Layer normalization in fp32, whatever the type of its weights: channels of language models differ in size by a factor of thousands."""

    def forward(self, input: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Each vector with mean 0 and deviation 1, then scaled and shifted by channel."""
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class UnitLength(nn.Module):
    """Vectors of length 1."""

    def __init__(self, width: int):
        super().__init__()

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Each vector divided by its length."""
        return F.normalize(features, dim=-1)


class ResidualBlock(nn.Module):
    """`x + Linear(GELU(Linear(LayerNorm(x))))`, with LLM2CLIP's names: `ln`, `fn.0`, `fn.3`."""

    def __init__(self, width: int, hidden_width: int, dropout: float, num_blocks: int):
        """Build one of so many blocks; each starts with a smaller branch the more there are, so that their sum does not grow."""
        super().__init__()
        out = _linear(hidden_width, width, gain=1 / math.sqrt(num_blocks))
        self.fn = nn.Sequential(_linear(width, hidden_width), nn.GELU(), nn.Dropout(dropout), out)
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The input plus the branch."""
        return x + self.fn(self.ln(x))


class StarBlock(nn.Module):
    """`g(ReLU6(f1(x)) * f2(x))` of the layer-normalized input, with SAIL's names; its layer norm is `norm` here, and stands beside the block there."""

    def __init__(self, sizes: Sizes):
        """Build the block."""
        super().__init__()
        self.norm = nn.LayerNorm(sizes.in_width)
        self.f1 = _linear(sizes.in_width, sizes.hidden_width)
        self.f2 = _linear(sizes.in_width, sizes.hidden_width)
        self.g = _linear(sizes.hidden_width, sizes.out_width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        """One linear map gates the other."""
        x = self.norm(x)
        return self.g(self.dropout(F.relu6(self.f1(x)) * self.f2(x)))


def _linear(in_width: int, out_width: int, *, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """A linear layer that starts from Xavier's uniform distribution (Glorot and Bengio 2010), as SAIL's do, and without a shift."""
    layer = nn.Linear(in_width, out_width, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _ape(sizes: Sizes) -> nn.Module:
    """Linear layers without bias and ReLUs in turn: `adaptor.0`, `adaptor.2`, ... are APD's `text_proj.0`, `text_proj.2`, ..."""
    widths = [sizes.in_width, *[sizes.hidden_width] * (sizes.num_layers - 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [_linear(before, after, bias=False, gain=RELU_GAIN), nn.Sequential(nn.ReLU(), nn.Dropout(sizes.dropout))]
    return nn.Sequential(*layers, _linear(widths[-1], sizes.out_width, bias=False))


def _residual(sizes: Sizes) -> nn.Module:
    """Residual blocks, a layer norm, a linear layer: `adaptor.0` to `adaptor.5` are LLM2CLIP's `text_adapter.adaptor.0` to `.5`."""
    blocks = [ResidualBlock(sizes.in_width, sizes.hidden_width, sizes.dropout, sizes.num_layers) for _ in range(sizes.num_layers)]
    return nn.Sequential(*blocks, nn.LayerNorm(sizes.in_width), _linear(sizes.in_width, sizes.out_width))


NORMALIZERS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "layernorm": InputNorm,
    "standardize": Standardize,
    "l2": UnitLength,
}

KINDS = {
    "ape": HeadKind(
        build=_ape, hidden_factor=1, num_layers=4, paper="APE (Rosenfeld et al. 2022, arXiv:2210.03927), shape of github.com/sramshetty/APD"
    ),
    "linear": HeadKind(build=lambda sizes: _linear(sizes.in_width, sizes.out_width), paper="LiT (Zhai et al. 2022, arXiv:2111.07991), appendix"),
    "residual": HeadKind(
        build=_residual, hidden_factor=2, num_layers=4, paper="LLM2CLIP (Huang et al. 2024, arXiv:2411.04997), TextProj of its eva_clip/model.py"
    ),
    "glu": HeadKind(build=StarBlock, hidden_factor=8, paper="SAIL (Zhang et al. 2024, arXiv:2412.04616), StarMLP"),
    "identity": HeadKind(build=lambda sizes: nn.Identity(), paper="a side that stays in its own space, as LiT's images (arXiv:2111.07991)"),
}

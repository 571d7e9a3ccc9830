"""Pixel shuffle: neighboring patches become channels, so a tile costs fewer tokens (Shi et al. 2016, arXiv:1609.05158; used by InternVL and Idefics3)."""

import math
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vlm.connectors.base import ConnectorSpec
from vlm.connectors.mlp import MLP, output_wide
from vlm.errors import ConfigError


class PixelShuffle(nn.Module):
    """`scale` x `scale` patches into one token with `scale**2` times the channels, then an MLP."""

    standardize = None

    def __init__(self, in_width: int, out_width: int, *, scale: int):
        """Build the MLP behind the shuffle.

        Args:
            in_width: Width of the patch features.
            out_width: Width of the language model's embeddings.
            scale: Patches that are joined along each side.
        """
        super().__init__()
        self.scale = scale
        self.mlp = MLP(in_width * scale**2, out_width, hidden=output_wide(1))

    @property
    def readout(self) -> nn.Linear:
        """The last linear layer."""
        return self.mlp.readout

    def body(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N K hidden"]:
        """Everything before the last linear layer."""
        return self.mlp.body(shuffle(features, self.scale))

    def forward(self, features: Float[Tensor, "N P D"]) -> Float[Tensor, "N K E"]:
        """One embedding for each square of `scale` x `scale` patches."""
        return self.readout(self.body(features))


def shuffle(features: Float[Tensor, "N P D"], scale: int) -> Float[Tensor, "N K joined"]:
    """Join squares of patches; channels are ordered by row in the square, column in the square, channel."""
    tiles, patches, width = features.shape
    side = math.isqrt(patches)
    num_tokens(patches, scale=scale)
    blocks = features.view(tiles, side // scale, scale, side // scale, scale, width)  # [N, rows, row in square, columns, column in square, D]
    return blocks.transpose(2, 3).reshape(tiles, patches // scale**2, scale**2 * width)


def num_tokens(num_patches: int, *, scale: int) -> int:
    """Tokens of a tile.

    Raises:
        ConfigError: If the patches are no square, or its side is not divisible by the scale.
    """
    side = math.isqrt(num_patches)
    if side**2 != num_patches or side % scale:
        raise ConfigError(
            f"PixelShuffle(scale={scale}) needs a square grid with side divisible by {scale}; got {num_patches} patches. Use another vision backbone or an MLP."
        )
    return num_patches // scale**2


PAPER = "InternVL 1.5 (Chen et al. 2024, arXiv:2404.16821)"
SPECS = {
    f"pixel-shuffle-{s}x": ConnectorSpec(build=partial(PixelShuffle, scale=s), num_tokens=partial(num_tokens, scale=s), paper=PAPER)
    for s in (2, 3, 4)
}

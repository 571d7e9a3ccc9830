"""What follows from cosines: CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv:2104.08718). Functions of numbers alone."""

import torch
from jaxtyping import Float
from torch import Tensor

CLIPSCORE_WEIGHT = 2.5  # w of section 3: it stretches the scores to about 0 to 1


def clipscore(cos: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """2.5 * max(cos, 0), section 3."""
    return CLIPSCORE_WEIGHT * cos.clamp(min=0)


def refclipscore(cos: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Harmonic mean of CLIPScore and the highest cosine with a reference, or 0 (section 3); 0 where one of them is 0.

    Args:
        cos: Of picture and caption.
        reference: The highest cosine of the caption with one of its references.
    """
    first, second = clipscore(cos), reference.clamp(min=0)
    return torch.where((first > 0) & (second > 0), 2 * first * second / (first + second), 0)

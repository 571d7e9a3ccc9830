"""DINOv2 with registers (Oquab et al. 2023, arXiv:2304.07193) as an image encoder: class token and mean patch after the last norm, side by side.

That is the vector of SAIL (arXiv:2412.04616) and dino.txt (arXiv:2412.16334); no text half exists. At 224 px a picture becomes pixels as transformers'
processor of these weights does it, 256 px and a cut; at other sizes, for which nothing is published, the whole short side is kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.image.base import ImageSpec, PooledImage, of_vision
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import TransformersVision, VisionSpec
from vlm.backbones.vision.dinov2 import SPECS as VISION
from vlm.types import ImagePolicy


class ClassAndMeanPatch(nn.Module):
    """A ViT whose pooled vector is twice as wide: class token and mean patch."""

    def __init__(self, vision: TransformersVision, *, num_prefix_tokens: int):
        """Wrap a tower.

        Args:
            vision: The tower; its class token comes first.
            num_prefix_tokens: Tokens before the patches, the class token included.
        """
        super().__init__()
        self.vision, self._num_prefix_tokens = vision, num_prefix_tokens

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """Both, after the last norm."""
        images = self.vision.normalize(pixels).to(next(self.parameters()).dtype)
        tokens = self.vision.model(images).last_hidden_state  # [N, T, D]
        return torch.cat([tokens[:, 0], tokens[:, self._num_prefix_tokens :].mean(1)], dim=-1)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self.vision.blocks()


def dinov2(spec: ImageSpec, load: Load) -> PooledImage:
    """Class token and mean patch."""
    vision = spec.tower.build(spec.tower, load)
    assert isinstance(vision, TransformersVision)
    return PooledImage(spec, ClassAndMeanPatch(vision, num_prefix_tokens=1 + spec.architecture["num_register_tokens"]))


def dinov2_spec(vision: VisionSpec, *, short_side: int | None = None) -> ImageSpec:
    """The spec of a DINOv2 image encoder.

    Args:
        vision: Its vision backbone.
        short_side: What the short side of a picture is resized to before the cut; None for the size of the tiles.
    """
    policy = ImagePolicy(size=vision.image_size, mode="crop", resample=vision.resample, short_side=short_side)
    return of_vision(vision, build=dinov2, image_policy=policy, pooling="class token and mean patch after the last norm", width=2 * vision.width)


SPECS = {f"{name}-image": dinov2_spec(vision, short_side=256 if vision.image_size == 224 else None) for name, vision in VISION.items()}

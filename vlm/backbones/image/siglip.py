"""SigLIP image encoders (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) through transformers.

Their vector is that of the attention pooling head, without a projection: `SiglipModel.get_image_features`.
"""

from vlm.backbones.image.base import SIGLIP_INIT, ImageSpec, PooledImage, of_vision, stored_scale
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.vision.siglip import SPECS as VISION
from vlm.types import ImagePolicy


def siglip(spec: ImageSpec, load: Load) -> PooledImage:
    """What the attention pooling head gives."""
    return PooledImage(spec, spec.tower.build(spec.tower, load))


def siglip_spec(vision: VisionSpec) -> ImageSpec:
    """The spec of a SigLIP image encoder."""
    return of_vision(
        vision,
        build=siglip,
        image_policy=ImagePolicy(size=vision.image_size, mode="squash", resample=vision.resample),
        pooling="attention pooling head",
        initial_scale=SIGLIP_INIT,
        read_scale=stored_scale,
    )


SPECS = {f"{name}-image": siglip_spec(vision) for name, vision in VISION.items()}

"""CLIP image encoders (Radford et al. 2021, arXiv:2103.00020) with their projection, from transformers' checkpoints: `CLIPModel.get_image_features`.

The cut of CLIP's crop follows transformers, which rounds half a pixel down; `open-clip:` names follow torchvision.
"""

from vlm.backbones.image.base import CLIP_INIT, ImageSpec, PooledImage, of_vision, stored_projection, stored_scale
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.vision.clip import SPECS as VISION
from vlm.types import ImagePolicy

JOINT_WIDTH = {768: 512, 1024: 768}  # of base and large towers


def clip(spec: ImageSpec, load: Load) -> PooledImage:
    """The class token after the last norm, projected."""
    tower = spec.tower.build(spec.tower, load)
    return PooledImage(spec, tower, projection=stored_projection(spec, load))


def clip_spec(vision: VisionSpec, *, width: int) -> ImageSpec:
    """The spec of a CLIP image encoder.

    Args:
        vision: Its vision backbone.
        width: Width of the joint space.
    """
    return of_vision(
        vision,
        build=clip,
        image_policy=ImagePolicy(size=vision.image_size, mode="crop", resample=vision.resample),
        pooling="class token after the last norm, projected",
        width=width,
        num_parameters=vision.num_parameters + vision.width * width,
        initial_scale=CLIP_INIT,
        read_scale=stored_scale,
    )


SPECS = {f"{name}-image": clip_spec(vision, width=JOINT_WIDTH[vision.width]) for name, vision in VISION.items()}

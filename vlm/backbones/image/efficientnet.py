"""EfficientNet-Lite0 out of a pip package as an image encoder: the mean of its last feature map, which its ImageNet classifier was trained on.

For the small ones a picture is squashed: they are meant for icons and drawings, whose margins belong to them. At 224 px, the size that the network was
trained at, it is cut as timm does it.
"""

from dataclasses import replace

from vlm.backbones.image.base import ImageSpec, PooledImage, of_vision
from vlm.backbones.loading import Load
from vlm.backbones.vision.efficientnet import SPECS as VISION
from vlm.types import ImagePolicy


def efficientnet(spec: ImageSpec, load: Load) -> PooledImage:
    """The mean of the last map."""
    return PooledImage(spec, spec.tower.build(spec.tower, load))


def _spec(image_policy: ImagePolicy) -> ImageSpec:
    # of a vision backbone, the pooled vector does not depend on the layer of its patch features; the last one is the head's map of stride 32
    vision = replace(VISION["efficientnet-lite0-224"], image_size=image_policy.size, num_patches=(image_policy.size // 32) ** 2)
    return of_vision(vision, build=efficientnet, image_policy=image_policy, pooling="mean of the last feature map")


SPECS = {
    "efficientnet-lite0-64-image": _spec(ImagePolicy(size=64)),
    "efficientnet-lite0-128-image": _spec(ImagePolicy(size=128)),
    "efficientnet-lite0-224-image": _spec(ImagePolicy(size=224, mode="crop", short_side=256, half_pixel="even")),
}

"""The image encoders by name."""

from vlm.backbones.image.base import ImageSpec
from vlm.registry import Registry

IMAGE: Registry[ImageSpec] = Registry(__name__, kind="image encoder")

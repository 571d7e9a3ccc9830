"""The vision backbones by name."""

from vlm.backbones.vision.base import VisionSpec
from vlm.registry import Registry

VISION: Registry[VisionSpec] = Registry(__name__, kind="vision backbone")

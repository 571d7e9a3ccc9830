import pytest
import torch

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.loading import Load
from vlm.errors import ConfigError, UnknownNameError

NAME = "fused:tiny-clip-image+tiny-dinov2-image"


def test_vectors_of_the_parts_stand_side_by_side(pixels):
    parts = [build_image(IMAGE[name], Load(source=None)) for name in ("tiny-clip-image", "tiny-dinov2-image")]
    encoder = build_image(IMAGE[NAME], Load(source=None))
    assert torch.equal(encoder(pixels), torch.cat([part(pixels) for part in parts], dim=1))
    assert encoder.width == 8 + 32
    assert len(encoder.blocks()) == 6


def test_pictures_become_pixels_by_the_first_ones_policy():
    assert IMAGE[NAME].image_policy == IMAGE["tiny-clip-image"].image_policy
    assert IMAGE["dinosiglip-224-image"].image_policy == IMAGE["dinov2-l14-reg-224-image"].image_policy


def test_parts_of_unequal_size_are_refused_with_the_sizes():
    with pytest.raises(ConfigError, match=r"tiny-clip-image 32 px, clip-b32-224-image 224 px"):
        IMAGE["fused:tiny-clip-image+clip-b32-224-image"]
    with pytest.raises(ConfigError, match="two or more"):
        IMAGE["fused:tiny-clip-image"]


def test_vision_backbone_is_no_part():
    with pytest.raises(UnknownNameError, match="No image encoder named 'tiny-clip'"):
        IMAGE["fused:tiny-clip+tiny-siglip-image"]


def test_parts_load_from_subfolders(tmp_path, folder, pixels):
    path, _ = folder("tiny-clip-image")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "tiny-clip-image").symlink_to(path)
    dinov2 = build_image(IMAGE["tiny-dinov2-image"], Load(source=None))
    dinov2.tower.vision.model.save_pretrained(tmp_path / "both" / "tiny-dinov2-image")
    encoder = build_image(IMAGE[NAME], Load(source=tmp_path / "both"))
    clip = build_image(IMAGE["tiny-clip-image"], Load(source=path))
    assert torch.equal(encoder(pixels), torch.cat([clip(pixels), dinov2(pixels)], dim=1))

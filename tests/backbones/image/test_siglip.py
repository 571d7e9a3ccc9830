from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.image.siglip import SPECS
from vlm.backbones.loading import Load
from vlm.data.image import to_pixels


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pixels_and_normalized_values_are_bit_equal_to_transformers(resample: str, picture):
    spec = IMAGE["tiny-siglip-image"]
    encoder = build_image(replace(spec, image_policy=replace(spec.image_policy, resample=resample)), Load(source=None))
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=Image.Resampling[resample.upper()])
    expected = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(encoder.tower.normalize(to_pixels([picture], encoder.image_policy)), expected)


def test_second_generation_is_resized_bilinearly_as_its_processor_config_says():
    assert {spec.image_policy.resample for name, spec in SPECS.items() if name.startswith("siglip2")} == {"bilinear"}
    assert {spec.image_policy.resample for name, spec in SPECS.items() if name.startswith("siglip-")} == {"bicubic"}
    assert {spec.image_policy.mode for spec in SPECS.values()} == {"squash"}

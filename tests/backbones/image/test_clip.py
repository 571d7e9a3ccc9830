import pytest
import torch
from transformers import CLIPImageProcessorPil

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.image.clip import SPECS
from vlm.backbones.loading import Load
from vlm.data.image import to_pixels

TOTAL = {"clip-b16-224": 149_620_737, "clip-b32-224": 151_277_313, "clip-l14-224": 427_616_513, "clip-l14-336": 427_944_193}
TEXT = {512: 63_428_096, 768: 123_650_304}  # parameters of the text half by the width of the joint space


@pytest.mark.parametrize("name", TOTAL)
def test_parameters_of_both_halves_add_up_to_the_published_total(name: str):
    spec = SPECS[f"{name}-image"]
    assert spec.num_parameters + TEXT[spec.width] + 1 == TOTAL[name]


def test_laion_has_exact_gelu_and_openai_quick_gelu():
    assert SPECS["clip-b32-224-laion2b-image"].architecture["hidden_act"] == "gelu"
    assert SPECS["clip-b32-224-image"].architecture["hidden_act"] == "quick_gelu"


def test_pixels_and_normalized_values_are_bit_equal_to_transformers(picture):
    encoder = build_image(IMAGE["tiny-clip-image"], Load(source=None))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(encoder.tower.normalize(to_pixels([picture], encoder.image_policy)), expected)


def test_published_size_is_bit_equal_to_the_default_processor_of_transformers(picture):
    spec = SPECS["clip-b32-224-image"]
    pixels = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)(picture, return_tensors="pt").pixel_values
    assert torch.equal(to_pixels([picture], spec.image_policy), pixels.to(torch.uint8))

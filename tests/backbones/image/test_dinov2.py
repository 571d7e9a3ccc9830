import torch
from transformers import BitImageProcessorPil

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import IMAGENET_MEAN, IMAGENET_STD
from vlm.data.image import to_pixels


def test_vector_is_the_class_token_and_the_mean_patch_after_the_last_norm(pixels):
    encoder = build_image(IMAGE["tiny-dinov2-image"], Load(source=None))
    model = encoder.tower.vision.model
    states = model.layernorm(model(encoder.tower.vision.normalize(pixels), output_hidden_states=True).hidden_states[-1])
    registers = 4
    expected = torch.cat([states[:, 0], states[:, 1 + registers :].mean(1)], dim=1)
    torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-5)
    assert states.shape == (2, 1 + registers + 16, 16)


def test_tower_loads_from_a_folder(tmp_path, pixels):
    encoder = build_image(IMAGE["tiny-dinov2-image"], Load(source=None))
    with torch.no_grad():
        encoder.tower.vision.model.layernorm.weight.mul_(3)
    encoder.tower.vision.model.save_pretrained(tmp_path)
    assert torch.equal(build_image(IMAGE["tiny-dinov2-image"], Load(source=tmp_path))(pixels), encoder(pixels))


def test_pixels_at_224_are_bit_equal_to_transformers(picture):
    """The processor config of facebook/dinov2-with-registers-large: 256 px bicubic, 224 px cut."""
    spec = IMAGE["dinov2-l14-reg-224-image"]
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    pixels = processor(picture, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    assert torch.equal(to_pixels([picture], spec.image_policy), pixels.to(torch.uint8))

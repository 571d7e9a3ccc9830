import pytest
import torch

from vlm.backbones.image.base import build_image
from vlm.backbones.image.tiny import SPECS
from vlm.backbones.loading import Load
from vlm.backbones.text.base import build_text
from vlm.backbones.text.tiny import SPECS as TEXT


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip"])
def test_both_halves_have_vectors_of_one_width(name: str, pixels):
    image, text = build_image(SPECS[f"{name}-image"], Load(source=None)), build_text(TEXT[f"{name}-text"], Load(source=None))
    assert (image(pixels) @ text.encode(["a blue circle", "a red square", "a cat"]).T).shape == (2, 3)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_reach_the_first_weight(name: str, pixels):
    encoder = build_image(SPECS[name], Load(source=None))
    encoder(pixels).square().mean().backward()
    patch = next(module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d))
    assert patch.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(SPECS))
def test_layer_that_was_replaced_in_the_model_is_the_one_that_runs(name: str, pixels):
    encoder = build_image(SPECS[name], Load(source=None))
    path = next(path for path, module in encoder.named_modules() if module is encoder.blocks()[0])
    calls = []
    encoder.get_submodule(path).register_forward_hook(lambda *_: calls.append(path))
    encoder(pixels)
    assert calls == [path]

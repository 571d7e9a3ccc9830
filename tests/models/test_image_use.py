"""A black and a white picture, for every language family and vision backbone; and models whose pictures get lost."""

import pytest
import torch
from PIL import Image
from plain_forward import plain_logits

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.errors import CheckpointError
from vlm.models.generate import ask

QUESTION = "<image>"  # alone, because two layers of tiny-mistral's sliding window see ten tokens
BLACK, WHITE = (Image.new("RGB", (64, 64), color) for color in ("black", "white"))


def test_a_black_and_a_white_picture_have_different_scores(compose, family):
    model = compose(**family)
    black, white = (plain_logits(model, ask([picture], QUESTION), [])[-1] for picture in (BLACK, WHITE))
    assert (black - white).abs().max() > 1e-3
    use = model.check_image_use(QUESTION)
    assert use.logits == pytest.approx(float((black - white).abs().max()), rel=1e-3)
    assert use.probabilities == pytest.approx(float((black.softmax(-1) - white.softmax(-1)).abs().sum() / 2), rel=1e-3)
    assert use.noise < 1e-5


@pytest.mark.parametrize("vision", ["tiny-clip", "tiny-siglip", "tiny-dinov2", "tiny-fused"])
def test_every_vision_backbone_tells_black_from_white(compose, vision):
    assert compose(vision=vision).check_image_use().logits > 1e-3


@pytest.mark.parametrize(("vision", "language", "template"), [("tiny-clip", "tiny-phi3", "phi-3"), ("tiny-siglip", "tiny-llama", "pure")])
def test_towers_from_folders_of_transformers_tell_black_from_white_as_the_named_ones_do(compose, tmp_path, vision, language, template):
    tower, base = VISION[vision], LANGUAGE[language]
    tower.build(tower, Load(None)).model.save_pretrained(str(tmp_path / "tower"))
    base.build(base, Load(None)).save_pretrained(str(tmp_path / "base"))
    base.tokenizer(base, None).save_pretrained(str(tmp_path / "base"))
    opened = compose(vision=f"hf:{tmp_path / 'tower'}", language=f"hf:{tmp_path / 'base'}", template=template).check_image_use(QUESTION)
    assert opened.logits > 1e-3
    assert opened.logits == pytest.approx(compose(vision=vision, language=language, template=template).check_image_use(QUESTION).logits, rel=1e-3)


def test_pictures_that_get_lost_are_noticed(compose, monkeypatch):
    model = compose()
    monkeypatch.setattr(model.connector, "forward", lambda features: torch.zeros(len(features), model.tokens_per_tile, model.language.width))
    with pytest.raises(CheckpointError, match=r"Pictures do not reach the answer: after a black and a white one .* differ by 0"):
        model.check_image_use()

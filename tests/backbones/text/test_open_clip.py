from pathlib import Path

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import build_text
from vlm.errors import CheckpointError, ConfigError, UnknownNameError
from vlm.types import TextEncoder

open_clip = pytest.importorskip("open_clip")
TEXTS = ["A blue circle", "", "a red square and a green triangle", "What shape is in the picture? " * 20]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(params=["CLIP", "CustomTextCLIP"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model of open_clip, of both its classes."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", TINY | ({"custom_text": True} if request.param == "CustomTextCLIP" else {}))
    return "tiny-vit"


@torch.no_grad()
def test_vectors_are_those_of_open_clip(name: str, tmp_path: Path):
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    spec = TEXT[f"open-clip:{name}:{tmp_path / 'weights.pt'}-text"]
    encoder = build_text(spec, Load(source=spec.source))
    expected = model.encode_text(open_clip.get_tokenizer(name)(TEXTS))
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert isinstance(encoder, TextEncoder)
    assert (spec.width, spec.max_length, len(encoder.blocks())) == (16, 24, 2)
    assert not any("visual" in key for key in encoder.state_dict())


@pytest.mark.parametrize("name_of", ["open-clip:{}", "open-clip:{}:-text", "open-clip:{}-text"])
def test_name_without_weights_is_random(name: str, name_of: str):
    spec = TEXT[name_of.format(name)]
    assert spec.source is None
    encoder = build_text(spec, Load(source=None))
    assert encoder.encode(TEXTS).shape == (4, 16)
    assert encoder.describe()["tokenizer"] == f"open-clip:{name}"


def test_unknown_model_and_weights_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"No open_clip model named 'ViT-B-33'\. Did you mean"):
        TEXT["open-clip:ViT-B-33:openai-text"]
    with pytest.raises(UnknownNameError, match=r"named 'openaj'\. Did you mean 'openai'"):
        TEXT["open-clip:ViT-B-32:openaj-text"]


def test_file_of_another_model_is_one_line(name: str, tmp_path: Path):
    torch.save({"token_embedding.weight": torch.ones(3, 3)}, tmp_path / "weights.pt")
    spec = TEXT[f"open-clip:{name}:{tmp_path / 'weights.pt'}-text"]
    with pytest.raises(CheckpointError, match="could not be loaded") as error:
        build_text(spec, Load(source=spec.source))
    assert "\n" not in str(error.value)


def test_instruction_is_refused(name: str):
    with pytest.raises(ConfigError, match="takes no instruction"):
        build_text(TEXT[f"open-clip:{name}"], Load(source=None)).encode(["a"], instruction="Find it")


def test_tower_is_sized_on_the_meta_device(name: str):
    spec = TEXT[f"open-clip:{name}"]
    with torch.device("meta"):
        tower = spec.build(spec, Load(source=None))
        assert tower(torch.zeros(2, spec.max_length, dtype=torch.long)).shape == (2, spec.width)
    assert {parameter.device.type for parameter in tower.parameters()} == {"meta"}

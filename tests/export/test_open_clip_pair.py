"""Dual encoders as folders of open_clip: equal vectors by open_clip's own calls, for towers of open_clip, timm and transformers."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_pairs import bert_folder, joined, pictures, two_towers

from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.conf.contrastive import DualEncoderConfig, HeadConfig
from vlm.errors import ConfigError
from vlm.export.dual import export_dual
from vlm.models.dual_build import build_pair, find_pair
from vlm.models.dual_encoder import DualEncoder

prepare_torchvision()
open_clip = pytest.importorskip("open_clip")

TEXTS = ["a red cat", "the blue  dog!", "the cat is red " * 9]
LINEAR = HeadConfig("linear")
TEXT = {"context_length": 24, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
TIMM = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
MODELS = {
    "tiny-vit": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-vit-quickgelu": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "tiny-timm": {"embed_dim": 12, "init_logit_bias": -10, "custom_text": True, "vision_cfg": TIMM, "text_cfg": TEXT},
    "tiny-resnet": {"embed_dim": 12, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
}


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """`weights(name)`: the name of a tiny model of open_clip with random weights in a file."""

    def save(name: str) -> str:
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, deepcopy(MODELS[name]))
        model = open_clip.create_model(name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5).add_(torch.randn_like(weight) * 0.05)
            model.logit_scale.fill_(2.0)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        return f"open-clip:{name}:{tmp_path / name}.safetensors"

    return save


def config_of(image: str, text: str, **others) -> DualEncoderConfig:
    return DualEncoderConfig(image=image, text=text, **({"text_head": LINEAR} | others))


def check(folder: Path, model: DualEncoder) -> None:
    """By the calls of open_clip's README."""
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    theirs.eval()
    assert type(theirs).__name__ == "CustomTextCLIP"
    with torch.no_grad():
        pixels = model.image.tower.normalize(model.pixels(pictures()))
        torch.testing.assert_close(theirs.encode_image(pixels, normalize=True), model.encode_image(pictures()), atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs.encode_text(tokens, normalize=True), model.encode_text(TEXTS), atol=1e-5, rtol=0)
        scale, bias = model.logit_scale()
        expected = scale * model.similarity(pictures(), TEXTS) + bias
        torch.testing.assert_close(theirs.get_logits(pixels, tokens)[0], expected, atol=1e-4, rtol=0)
        if model.image.image_policy.half_pixel == "even":
            assert torch.equal(transform(pictures()[0]), pixels[0])


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_clips_tower_of_transformers_with_a_pooled_bert(tmp_path, loss):
    clip, bert, out = two_towers("clip", tmp_path / "clip"), bert_folder(tmp_path / "bert"), tmp_path / "f\u00fcr open_clip"
    model = joined(config_of("tiny-clip-image", f"sentence:{bert}", image_source=str(clip), loss=loss))
    done = export_dual(model, out)
    assert done.format == "open_clip"
    assert done.parity.pixels["torchvision"] > 0.1  # half a pixel of the cut is rounded the other way there, and the user is told
    assert f"names {out} as hf_model_name" in done.notes[0]
    check(out, model)


@pytest.mark.parametrize("name", ["tiny-vit-quickgelu", "tiny-timm"])
def test_open_clips_towers_of_both_kinds_with_heads_on_both_sides(tmp_path, weights, name):
    head = HeadConfig("linear", normalize_input="standardize")
    model = joined(config_of(weights(name), f"sentence:{bert_folder(tmp_path / 'bert')}", image_head=LINEAR, text_head=head, joint_width=10))
    export_dual(model, tmp_path / "out", format="open_clip")
    check(tmp_path / "out", model)


def test_a_bert_pooled_at_its_first_token_without_a_head(tmp_path, weights):
    bert = bert_folder(tmp_path / "bert")
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    rows = [{"name": str(i), "path": path, "type": f"sentence_transformers.models.{type}"} for i, (path, type) in enumerate(types.items())]
    (bert / "modules.json").write_text(json.dumps(rows), encoding="utf-8")
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    model = joined(config_of(weights("tiny-vit"), f"sentence:{bert}", image_head=HeadConfig("ape", num_layers=1), text_head=HeadConfig()))
    export_dual(model, tmp_path / "out")
    assert "cls_last_hidden_state_pooler" in (tmp_path / "out" / "open_clip_config.json").read_text(encoding="utf-8")
    check(tmp_path / "out", model)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-timm"])
def test_both_towers_of_open_clip_published_or_with_a_head(tmp_path, weights, name):
    pair = weights(name)
    published = build_pair(find_pair(pair))
    export_dual(published, tmp_path / "published")
    check(tmp_path / "published", published)
    headed = joined(config_of(pair, pair))
    export_dual(headed, tmp_path / "headed")
    check(tmp_path / "headed", headed)


def test_what_open_clip_cannot_hold_is_refused_with_the_reason(tmp_path, weights):
    bert = bert_folder(tmp_path / "bert")
    vit = weights("tiny-vit")

    def refused(config: DualEncoderConfig, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            export_dual(joined(config), tmp_path / "out", format="open_clip")
        assert not (tmp_path / "out").exists()

    wide = config_of(vit, f"sentence:{bert}", image_head=HeadConfig("ape", num_layers=1), joint_width=40)
    refused(wide, r"the text head has a bias, .* map of 32 values to 40 .*num-layers 1")
    refused(config_of(vit, f"sentence:{bert}", instruction="query: "), r"gives texts to the tokenizer as they are.*'query: '")
    refused(config_of(vit, "tiny-siglip-text"), "the text tower must be one of open_clip's, or one of transformers' that is pooled")
    refused(config_of("tiny-dinov2-image", f"sentence:{bert}"), "the image tower must be one of open_clip's or CLIP's")
    refused(config_of(weights("tiny-resnet"), f"sentence:{bert}", image_head=LINEAR, joint_width=10), "ends in no linear projection")
    refused(config_of(weights("tiny-vit-quickgelu"), vit), "one quick_gelu for both towers; here it is True and False")
    bare = replace(wide, text_head=HeadConfig("ape", num_layers=1))
    export_dual(joined(bare), tmp_path / "out", format="open_clip")  # as the reason of the first one says

"""A residual head on a language model in LLM2CLIP's layout, loaded back by the loaders that read the published checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import joined, pictures, two_towers

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import build_text
from vlm.backbones.text.llm2clip import READING
from vlm.conf.contrastive import DualEncoderConfig, HeadConfig
from vlm.errors import ConfigError
from vlm.export.dual import export_dual
from vlm.models.contrastive import unit

LANGUAGE = Path(__file__).parents[1] / "data" / "llm2vec_golden" / "base"
TEXTS = ["a cat", "two children play football in the park"]
RESIDUAL = HeadConfig("residual", hidden_width=24, num_layers=2, normalize_input="l2")


@pytest.fixture
def config(tmp_path, monkeypatch) -> DualEncoderConfig:
    """CLIP's tower, and a language model that is read as LLM2CLIP reads it."""
    spec = replace(TEXT[f"llm2vec:{LANGUAGE}"], reading=READING)
    for table, entry in ((TEXT._tables[0], spec), (TEXT._tables[1], "tiny-llama-text")):
        monkeypatch.setitem(table, "tiny-llama-text", entry)
    clip = two_towers("clip", tmp_path / "clip")
    return DualEncoderConfig(image="tiny-clip-image", text="tiny-llama-text", image_source=str(clip), text_head=RESIDUAL)


@torch.no_grad()
@pytest.mark.parametrize("image_head", [HeadConfig(), HeadConfig("linear")])
def test_the_layout_is_loaded_back_to_equal_vectors(config, tmp_path, image_head):
    model = joined(replace(config, image_head=image_head, joint_width=8))
    done = export_dual(model, tmp_path / "out")
    assert done.format == "llm2clip" and f"llm2clip:{tmp_path / 'out'}+{LANGUAGE}" in done.notes[0]
    spec = TEXT[f"llm2clip:{tmp_path / 'out'}+{LANGUAGE}"]
    torch.testing.assert_close(unit(build_text(spec, Load(source=spec.source)).encode(TEXTS)), model.encode_text(TEXTS), atol=1e-5, rtol=0)
    assert {name.split(".")[0] for name in load_file(tmp_path / "out" / "model.safetensors")} == {
        "vision_model",
        "visual_projection",
        "text_adapter",
        "logit_scale",
    }
    assert len(model.encode_image(pictures())) == 3


def test_what_the_layout_cannot_hold_is_refused_with_the_reason(config, tmp_path):
    for changed, reason in (
        ({"text_head": replace(RESIDUAL, normalize_input="none")}, "kind residual with --model.text-head.normalize-input l2"),
        ({"loss": "siglip"}, "logits have no bias, and this model's have -10"),
        ({"instruction": "Find:"}, "read by the template of llm2clip-llama3-8b-text"),
        ({"text": f"llm2vec:{LANGUAGE}"}, "this text encoder is read differently"),
    ):
        with pytest.raises(ConfigError, match=reason):
            export_dual(joined(replace(config, **changed)), tmp_path / "out", format="llm2clip")
    assert not (tmp_path / "out").exists()

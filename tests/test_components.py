"""What every registered part gets for free: it builds, keeps its promised shapes, composes with the others, and appears by being a file.

Full-size entries are counted in tests/backbones; here are the tiny ones, all compositions of them, and the presets.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.conf.presets import PRESETS
from vlm.conf.schema import VisionLanguageConfig
from vlm.connectors import CONNECTORS
from vlm.data.chat import encode_chat
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import Example
from vlm.messages import Message
from vlm.models.build import build, resolve
from vlm.types import Connector, Documents, ImageEncoder, LanguageModel, VisionBackbone

ROOT = Path(__file__).parents[1]
TINY_VISION = [name for name in VISION if name.startswith("tiny-")]
TINY_LANGUAGE = [name for name in LANGUAGE if name.startswith("tiny-")]
TINY_IMAGE = [name for name in IMAGE if name.startswith("tiny-")]


def test_there_are_tiny_parts_of_each_kind():
    assert len(TINY_VISION) >= 4
    assert len(TINY_LANGUAGE) >= 6
    assert len(TINY_IMAGE) >= 4


@pytest.mark.parametrize("name", TINY_VISION)
@torch.no_grad()
def test_vision_backbone_maps_uint8_pixels_to_patch_features(name):
    spec = VISION[name]
    tower = spec.build(spec, Load(source=spec.source))
    pixels = torch.randint(0, 256, (2, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    features = tower(pixels)
    assert isinstance(tower, VisionBackbone)
    assert features.shape == (2, spec.num_patches, spec.width)
    assert tower.pooled(pixels).shape == (2, spec.pooled_width or spec.width)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", TINY_IMAGE)
@torch.no_grad()
def test_image_encoder_maps_uint8_pixels_to_one_vector_a_picture(name):
    spec = IMAGE[name]
    encoder = build_image(spec, Load(source=spec.source))
    pixels = torch.randint(0, 256, (2, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    assert isinstance(encoder, ImageEncoder)
    assert encoder(pixels).shape == (2, spec.width)
    assert encoder(pixels).isfinite().all()


@pytest.mark.parametrize("name", TINY_LANGUAGE)
@torch.no_grad()
def test_language_model_maps_embeddings_to_hidden_states_and_scores(name):
    spec = LANGUAGE[name]
    model = build_language(spec, Load(source=spec.source))
    hidden = model(model.embed(torch.randint(0, 300, (2, 5))), Documents.one_per_row(2, 5))
    assert isinstance(model, LanguageModel)
    assert hidden.shape == (2, 5, spec.width)
    assert model.logits(hidden[0]).shape == (5, spec.vocab_size)
    assert model.max_length == spec.max_length


@pytest.mark.parametrize("name", CONNECTORS)
def test_connector_keeps_the_protocol(name):
    assert isinstance(CONNECTORS[name].build(8, 8), Connector)


@pytest.mark.parametrize("connector", ["linear", "mlp2x-gelu", "pixel-shuffle-2x", "fused-mlp"])
@pytest.mark.parametrize("language", TINY_LANGUAGE)
@pytest.mark.parametrize("vision", TINY_VISION)
def test_any_triple_composes_from_names_and_learns(vision, connector, language):
    model = build(VisionLanguageConfig(vision=vision, connector=connector, language=language), precision="fp32", trained=("connector",))
    talk = [Message("user", "<image>\nWhat color?"), Message("assistant", "blue")]
    own = model.language
    counts = [model.tokens_per_tile]
    encoded = encode_chat(talk, template=own.template, tokenizer=own.tokenizer, image_token_id=own.image_token_id, tokens_per_image=counts)
    pixels = torch.randint(0, 256, (1, 3, model.image_policy.size, model.image_policy.size), dtype=torch.uint8)
    loss = model.train()(collate_singly([Example(id="0", ids=encoded.ids, labels=encoded.labels, pixels=pixels)], pad_id=own.tokenizer.pad_token_id))
    loss.sum.backward()
    assert loss.sum.isfinite()
    assert model.connector.readout.weight.grad.any()


TOKENS = {"demo": 16, "tiny": 16, "phi2-siglip": 729, "llava-1.5-7b": 576, "llava-1.5-13b": 576, "smollm2-siglip": 576}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_resolves_and_has_the_published_number_of_tokens_an_image(name):
    config = PRESETS[name]
    parts = resolve(config.model)
    assert parts.tokens_per_tile == TOKENS.get(name.split("/")[0], parts.vision.num_patches)  # of the others: tests/conf/test_presets.py
    assert name == f"{config.model.run_name}/{config.stage.name}"
    assert parts.image_policy.size == parts.vision.image_size


NEW_FILE = '''"""Averages all patches into one token."""
from vlm.connectors.base import ConnectorSpec
from vlm.connectors.linear import Linear


class Mean(Linear):
    """One token a tile."""

    def body(self, features):
        """The mean patch."""
        return features.mean(1, keepdim=True)


SPECS = {"mean-of-patches": ConnectorSpec(build=Mean, num_tokens=lambda num_patches: 1, paper="a test")}
'''

USE = """
import json, sys
import vlm.connectors
vlm.connectors.__path__.append(sys.argv[1])  # as if the file lay in vlm/connectors
from vlm.__main__ import main
from vlm.conf.schema import VisionLanguageConfig
from vlm.models.build import build
model = build(VisionLanguageConfig(vision="tiny-clip", connector="mean-of-patches", language="tiny-llama"), precision="fp32")
print(type(model.connector).__name__, model.tokens_per_tile)
try:
    build(VisionLanguageConfig(vision="tiny-clip", connector="mean-of-patchs", language="tiny-llama"), precision="fp32")
except ValueError as error:
    print(error)
sys.argv = ["vlm", "list", "connectors", "--json"]
main()
"""


def test_a_new_file_among_the_connectors_makes_its_names_appear_everywhere(tmp_path):
    (tmp_path / "mean_of_patches.py").write_text(NEW_FILE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", USE, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built, typo, listed = done.stdout.split("\n", 2)
    assert built == "Mean 1"
    assert "Did you mean 'mean-of-patches'" in typo
    assert "mean-of-patches" in [row["name"] for row in json.loads(listed)["connectors"]]

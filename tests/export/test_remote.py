"""Folders with code of their own: exact for every kind of part, and read by a process that has no vlm."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.errors import ConfigError
from vlm.export.answers_parity import own_answers, prompts_of
from vlm.export.hf import export_hf
from vlm.export.parity import picture
from vlm.export.remote import describe_connector, describe_tower
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ImagePolicy

COMPOSITIONS = [
    ("tiny-fused", "tiny-qwen2", "linear", {"resize": "crop", "rank": 4}),
    ("tiny-siglip", "tiny-phi", "pixel-shuffle-2x", {"resize": "pad"}),
    ("tiny-dinov2", "tiny-llama", "standardized-mlp2x", {}),
    ("tiny-clip", "tiny-phi3", "mlp:8x12@silu", {"feature_layer": -1, "template": "prism-lora-phi-3"}),
    ("tiny-siglip", "tiny-llama", "mlp2x-gelu", {"resize": "letterbox", "template": "prism-pure"}),
    ("tiny-siglip", "tiny-phi", "mlp2x-gelu", {"template": "prism-lora-phi-2"}),  # no BOS: the picture is inside the text
]


@pytest.mark.parametrize(("vision", "language", "connector", "others"), COMPOSITIONS, ids=["-".join(parts[:2]) for parts in COMPOSITIONS])
def test_code_computes_what_the_model_does(answerer, own_modules, tmp_path, vision, language, connector, others):
    model = answerer(vision, language, connector, **others)
    if language == "tiny-phi":
        torch.nn.init.normal_(model.language.model.lm_head.bias)
    done = export_hf(model, tmp_path / "out", with_code=True)
    assert done.parity.is_equal
    assert done.parity.logits < 1e-5
    assert done.parity.pixels == {"of the folder": 0}


@pytest.mark.parametrize("name", ["efficientnet-lite0-64", "timm:resnet18"])
def test_towers_that_are_not_of_transformers(answerer, own_modules, tmp_path, name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    spec = VISION[name]
    vision = spec.build(spec, Load(None)).eval()
    from vlm.connectors import CONNECTORS

    language = answerer(language="tiny-llama").language
    language.max_length = 4096
    policy = ImagePolicy(size=spec.image_size, mode="squash", resample=spec.resample, fill=spec.fill)
    connector = CONNECTORS["mlp2x-gelu"].build(vision.width, language.width)
    model = VisionLanguageModel(vision, connector, language, tokens_per_tile=vision.num_patches, image_policy=policy).eval()
    assert export_hf(model, tmp_path / "out", with_code=True).parity.logits < 1e-5


READER = """
import sys
sys.modules["vlm"] = None  # importing it fails
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
inputs = processor(images=Image.open(sys.argv[2]), text=processor.apply_chat_template(talk, add_generation_prompt=True), return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=32, min_new_tokens=32)
print(answer[0, inputs["input_ids"].shape[1]:].tolist())
print(inputs["pixel_values"].dtype, model.connector.mean.dtype, model.dtype)
"""


def test_process_without_vlm_answers_the_same(answerer, own_modules, tmp_path):
    model = answerer("tiny-fused", "tiny-qwen2", "linear")
    (expected, *_) = own_answers(model, prompts_of(model))
    export_hf(model, tmp_path / "out", with_code=True)
    picture().save(tmp_path / "picture.png")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", READER, str(tmp_path / "out"), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    tokens, types = done.stdout.splitlines()[-2:]
    assert tokens == str(expected.tokens)
    assert types == "torch.uint8 torch.float32 torch.float32"


def test_statistics_stay_in_fp32(answerer, own_modules, tmp_path):
    from transformers import AutoModelForImageTextToText

    model = answerer("tiny-siglip", "tiny-llama", "standardized-mlp2x")
    done = export_hf(model, tmp_path / "out", with_code=True, dtype="bf16")
    assert done.rounding is not None
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype="auto")
    assert (loaded.dtype, loaded.connector.mean.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(loaded.connector.mean, model.connector.standardize.mean)


def test_own_parts_are_refused():
    with pytest.raises(ConfigError, match="of the class Conv2d, which `--with-code` has no code for"):
        describe_tower(nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match="of the class Tanh, which"):
        describe_connector(nn.Tanh(), 4)

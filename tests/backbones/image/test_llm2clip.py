"""Checkpoints as LLM2CLIP publishes them: one safetensors file with both halves under their names, and no config that transformers knows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vlm.backbones.image.base import ImageSpec, build_image, joint_scale
from vlm.backbones.image.llm2clip import SPECS, llm2clip
from vlm.backbones.image.tiny import SPECS as TINY
from vlm.backbones.loading import Load
from vlm.errors import CheckpointError


@pytest.fixture
def spec() -> ImageSpec:
    """LLM2CLIP's loading for a tower of the tests."""
    clip = TINY["tiny-clip-image"]
    return replace(clip, build=llm2clip, width=24, source="microsoft/LLM2CLIP-tiny")


@pytest.fixture
def checkpoint(spec: ImageSpec, tmp_path: Path) -> tuple[Path, CLIPVisionModelWithProjection]:
    """A folder, and transformers' model with the same weights."""
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**spec.architecture, hidden_act="quick_gelu", projection_dim=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    text = {"text_adapter.adaptor.0.weight": torch.ones(2, 2), "logit_scale": torch.tensor(3.0)}
    constant = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # as files of transformers before 4.31 have
    save_file(model.state_dict() | text | constant, tmp_path / "model.safetensors")
    return tmp_path, model


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    changed = load_file(path / "model.safetensors") | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in changed.items() if value is not None}, path / "model.safetensors")


def test_vectors_are_those_of_transformers_with_a_projection(spec: ImageSpec, checkpoint, pixels):
    path, model = checkpoint
    encoder = build_image(spec, Load(source=path))
    torch.testing.assert_close(encoder(pixels), model(encoder.tower.normalize(pixels)).image_embeds, rtol=0, atol=1e-5)
    assert joint_scale(spec, Load(source=path)) == (pytest.approx(20.0855, abs=1e-3), 0)


def test_file_may_be_named_itself_and_loads_in_bf16(spec: ImageSpec, checkpoint, pixels):
    path, _ = checkpoint
    encoder = build_image(spec, Load(source=path / "model.safetensors", dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder(pixels).shape == (2, 24)


@pytest.mark.parametrize("name", ["visual_projection__weight", "vision_model__encoder__layers__2__mlp__fc1__bias"])
def test_missing_tensor_is_named(name: str, spec: ImageSpec, checkpoint):
    change(checkpoint[0], **{name: None})
    with pytest.raises(CheckpointError, match=rf"lacks 1 tensors, among them {name.replace('__', '.')}"):
        build_image(spec, Load(source=checkpoint[0]))


@pytest.mark.parametrize("name", ["vision_model__encoder__layers__3__mlp__fc1__bias", "rope__freqs"])
def test_unknown_tensor_is_named(name: str, spec: ImageSpec, checkpoint):
    change(checkpoint[0], **{name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"has unknown 1 tensors, among them {name.replace('__', '.')}"):
        build_image(spec, Load(source=checkpoint[0]))


def test_tensor_of_another_shape_is_named(spec: ImageSpec, checkpoint):
    change(checkpoint[0], visual_projection__weight=torch.ones(24, 15))
    with pytest.raises(CheckpointError, match=r"of another shape 1 tensors, among them visual_projection\.weight"):
        build_image(spec, Load(source=checkpoint[0]))


def test_whole_b16_model_has_the_361_million_parameters_of_its_card():
    width, joint = 4096, 1280  # the adapter: four residual blocks of two layers, norms, and a last layer (arXiv:2411.04997)
    block = 2 * width + (width * 2 * width + 2 * width) + (2 * width * width + width)
    adapter = 4 * block + 2 * width + width * joint + joint
    assert round((SPECS["llm2clip-b16-224-image"].num_parameters + adapter) / 1e6) == 361

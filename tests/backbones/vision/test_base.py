import json
import logging
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, Normalize, position_of_layer
from vlm.backbones.vision.tiny import SPECS
from vlm.errors import CheckpointError, ConfigError
from vlm.types import VisionBackbone

FULL_SIZE = [name for name in VISION if not name.startswith("tiny-")]
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50, "eos_token_id": 1}
CLASSES = {"tiny-clip": ("CLIPModel", "CLIPConfig"), "tiny-siglip": ("SiglipModel", "SiglipConfig")}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_entry_has_the_parameters_and_shapes_that_its_spec_says(name: str):
    spec = VISION[name]
    with torch.device("meta"):
        tower = spec.build(spec, Load(source=None))
        pixels = torch.empty(2, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
        assert tower(pixels).shape == (2, spec.num_patches, spec.width)
        assert tower.pooled(pixels).shape == (2, spec.pooled_width or spec.width)
    assert sum(parameter.numel() for parameter in tower.parameters()) == spec.num_parameters
    assert isinstance(tower, VisionBackbone)
    assert (tower.width, tower.num_patches, tower.image_size) == (spec.width, spec.num_patches, spec.image_size)


PRISMATIC = {  # patches and width, table 1 of the facts about Prismatic's registry
    "clip-vit-b": (196, 768),
    "clip-vit-l": (256, 1024),
    "clip-vit-l-336px": (576, 1024),
    "siglip-vit-b16-224px": (196, 768),
    "siglip-vit-b16-256px": (256, 768),
    "siglip-vit-b16-384px": (576, 768),
    "siglip-vit-so400m": (256, 1152),
    "siglip-vit-so400m-384px": (729, 1152),
    "dinov2-vit-l": (256, 1024),
    "in1k-vit-l": (196, 1024),
    "dinoclip-vit-l-336px": (576, 2048),
    "dinosiglip-vit-so-224px": (256, 2176),
    "dinosiglip-vit-so-384px": (729, 2176),
}


@pytest.mark.parametrize("name", PRISMATIC)
def test_every_vision_backbone_of_prismatic_answers_to_its_name_there(name: str):
    assert (VISION[name].num_patches, VISION[name].width) == PRISMATIC[name]


@pytest.mark.parametrize("processor", ["SiglipImageProcessorPil", "CLIPImageProcessorPil"])
def test_normalization_is_bit_equal_to_the_pil_processors_of_transformers(processor: str, all_values):
    import transformers

    expected = getattr(transformers, processor)(do_resize=False, do_center_crop=False)(all_values, return_tensors="pt").pixel_values
    statistics = {"mean": OPENAI_MEAN, "std": OPENAI_STD} if "CLIP" in processor else {}
    normalize = Normalize(replace(SPECS["tiny-siglip"], image_size=16, **statistics))
    pixels = torch.from_numpy(all_values.copy()).permute(2, 0, 1)[None]
    assert (normalize(pixels) - expected).abs().max() == 0.0


def test_normalization_stays_in_fp32_when_the_tower_becomes_bf16(all_values):
    pixels = torch.from_numpy(all_values.copy()).permute(2, 0, 1)[None]
    normalize = Normalize(replace(SPECS["tiny-siglip"], image_size=16, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    before = normalize(pixels)
    after = normalize.to(torch.bfloat16)(pixels)
    assert after.dtype == torch.float32
    assert torch.equal(before, after)


def test_normalization_built_on_meta_has_its_constants_after_to_empty(all_values):
    pixels = torch.from_numpy(all_values.copy()).permute(2, 0, 1)[None]
    spec = replace(SPECS["tiny-clip"], image_size=16)
    with torch.device("meta"):
        normalize = Normalize(spec)
    assert torch.equal(normalize.to_empty(device="cpu")(pixels), Normalize(spec)(pixels))


def test_normalization_adds_nothing_to_the_state_dict():
    assert not Normalize(SPECS["tiny-clip"]).state_dict()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_normalization_on_cuda_is_bit_equal_to_the_cpu(all_values):
    pixels = torch.from_numpy(all_values.copy()).permute(2, 0, 1)[None]
    normalize = Normalize(replace(SPECS["tiny-clip"], image_size=16))
    expected = normalize(pixels)
    assert torch.equal(normalize.cuda()(pixels.cuda()).cpu(), expected)


def test_tiles_of_another_size_are_refused_with_both_sizes(tiles):
    tower = SPECS["tiny-dinov2"].build(SPECS["tiny-dinov2"], Load(source=None))
    with pytest.raises(ConfigError, match=r"32x32 pixels, got 24x24"):
        tower(tiles(24))


def test_padding_color_is_the_channel_mean_as_in_llava():
    assert VISION["clip-l14-336"].fill == (122, 116, 104)
    assert VISION["siglip-so400m-384"].fill == (127, 127, 127)


@pytest.mark.parametrize(("feature_layer", "position"), [(-1, 3), (-2, 2), (-4, 0), (0, 0), (3, 3)])
def test_feature_layer_indexes_hidden_states(feature_layer: int, position: int):
    assert position_of_layer(feature_layer, depth=3, source="x") == position


@pytest.mark.parametrize("feature_layer", [-5, 4])
def test_feature_layer_outside_of_the_tower_is_refused(feature_layer: int):
    with pytest.raises(ConfigError, match="3 layers of random; use -4 to 3"):
        SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=None, feature_layer=feature_layer))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_layers_after_the_feature_layer_are_not_run(name: str, tiles):
    tower = SPECS[name].build(SPECS[name], Load(source=None))
    ran = []
    for i, block in enumerate(tower.blocks()):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    tower(tiles(32))
    assert ran == [i for i in range(len(tower.blocks())) if i % 3 != 2]  # three layers a tower, the last one unused


@pytest.mark.parametrize("name", sorted(SPECS))
def test_layer_that_was_replaced_in_the_model_is_the_one_that_runs(name: str, tiles):
    tower = SPECS[name].build(SPECS[name], Load(source=None))

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.inner(*args, **kwargs)

    path, layer = next((path, module) for path, module in tower.named_modules() if module is tower.blocks()[0])
    tower.set_submodule(path, Wrapper(layer))
    tower(tiles(32))
    assert tower.get_submodule(path).calls == 1


def saved(name: str, folder: Path, layout: str) -> torch.nn.Module:
    """Write a random model to disk; returns its vision tower."""
    import transformers

    spec = SPECS[name]
    model_class, config_class = (getattr(transformers, class_name) for class_name in CLASSES[name])
    text = TEXT | {"bos_token_id": 0, "pad_token_id": 1}
    two_tower = model_class(config_class(vision_config=dict(spec.architecture), text_config=text))
    vision = two_tower.vision_model
    (two_tower if layout == "two towers" else vision).save_pretrained(folder)
    if layout == "vision only, with prefix":  # as transformers before 5 wrote it
        tensors = load_file(folder / "model.safetensors")
        save_file({f"vision_model.{key}": value for key, value in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return vision


@pytest.mark.parametrize("layout", ["two towers", "vision only", "vision only, with prefix"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_tower_loads_from_every_published_layout_without_the_network(name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vision = saved(name, tmp_path, layout)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    tower = SPECS[name].build(SPECS[name], Load(source=tmp_path))
    expected, loaded = vision.state_dict(), tower.model.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[key], loaded[key]) for key in expected)


def test_two_tower_folder_has_the_keys_of_the_hub(tmp_path: Path):
    saved("tiny-clip", tmp_path, "two towers")
    assert "vision_model.embeddings.patch_embedding.weight" in load_file(tmp_path / "model.safetensors")


def test_tower_loads_in_the_type_that_is_asked_for(tmp_path: Path):
    saved("tiny-siglip", tmp_path, "two towers")
    tower = SPECS["tiny-siglip"].build(SPECS["tiny-siglip"], Load(source=tmp_path, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}


def test_config_of_another_width_is_refused_with_both_values(tmp_path: Path):
    saved("tiny-siglip", tmp_path, "vision only")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(CheckpointError, match="hidden_size is 24, expected 16"):
        SPECS["tiny-siglip"].build(SPECS["tiny-siglip"], Load(source=tmp_path))


def test_config_that_contradicts_itself_is_one_line_with_a_remedy(tmp_path: Path):
    saved("tiny-siglip", tmp_path, "vision only")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(CheckpointError, match=r"hidden_size.*--model.vision-source") as error:
        SPECS["tiny-siglip"].build(SPECS["tiny-siglip"], Load(source=tmp_path))
    assert "\n" not in str(error.value)


def test_text_tower_that_is_left_over_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    saved("tiny-clip", tmp_path, "two towers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    caplog.clear()
    SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=tmp_path))
    assert "UNEXPECTED" not in caplog.text


def test_wrong_model_is_refused_before_its_weights_are_read(tmp_path: Path):
    saved("tiny-siglip", tmp_path, "vision only")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="num_hidden_layers is 3, expected 27"):
        VISION["siglip-so400m-384"].build(VISION["siglip-so400m-384"], Load(source=tmp_path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./no-such-folder", Path("no/folder")])
def test_missing_folder_is_one_line_with_a_remedy(source: str | Path):
    with pytest.raises(CheckpointError, match=r"no folder .*--model.vision-source") as error:
        SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=source))
    assert "\n" not in str(error.value)


def test_hub_that_cannot_be_reached_is_one_line_with_a_remedy():
    spec = VISION["siglip-so400m-384"]
    with pytest.raises(CheckpointError, match=r"google/siglip-so400m-patch14-384.*--model.vision-source") as error:
        spec.build(spec, Load(source=spec.source))
    assert "\n" not in str(error.value)


def test_missing_tensor_is_named(tmp_path: Path):
    saved("tiny-clip", tmp_path, "vision only")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*encoder\.layers\.1\.mlp\.fc1\.bias"):
        SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=tmp_path))


def test_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path):
    saved("tiny-clip", tmp_path, "vision only")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["post_layernorm.weight"] = torch.ones(17)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"post_layernorm\.weight is \(17,\), expected \(16,\)"):
        SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=tmp_path))


def test_truncated_weights_are_a_checkpoint_error(tmp_path: Path):
    saved("tiny-clip", tmp_path, "vision only")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        SPECS["tiny-clip"].build(SPECS["tiny-clip"], Load(source=tmp_path))

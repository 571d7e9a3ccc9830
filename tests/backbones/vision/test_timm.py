import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.errors import CheckpointError, ConfigError, MissingPackageError, UnknownNameError

timm = pytest.importorskip("timm")


def build(name: str, **options) -> torch.nn.Module:
    return VISION[name].build(VISION[name], Load(**({"source": None} | options))).eval()


@pytest.mark.parametrize("feature_layer", [None, -1, 1, 6])
def test_vit_features_are_the_patches_after_a_block(feature_layer: int | None, tiles, processed):
    tower = build("timm:test_vit", feature_layer=feature_layer)
    outputs = []
    for block in tower.model.blocks:
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    tower.model(processed(tiles(160), VISION["timm:test_vit"]))
    expected = outputs[{None: -2, -1: -1, 1: 0, 6: 5}[feature_layer]]
    outputs.clear()
    features = tower(tiles(160))
    torch.testing.assert_close(features, expected[:, tower.model.num_prefix_tokens :], rtol=0, atol=1e-5)
    assert len(outputs) == {None: 5, -1: 6, 1: 1, 6: 6}[feature_layer]


def test_cnn_features_are_the_last_map_row_by_row(tiles, processed):
    tower = build("timm:test_resnet")
    last_map = tower.model.forward_features(processed(tiles(160), VISION["timm:test_resnet"]))
    torch.testing.assert_close(tower(tiles(160)), last_map.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(tower.pooled(tiles(160)), last_map.mean(dim=(2, 3)), rtol=0, atol=1e-5)


def test_another_stage_of_a_cnn_has_its_own_width_and_patches(tiles):
    tower = build("timm:test_resnet", feature_layer=3)
    assert tower(tiles(160)).shape == (2, tower.num_patches, tower.width) == (2, 400, 48)


def test_sizes_are_known_without_a_download():
    spec = VISION["timm:vit_base_patch16_siglip_384.webli"]
    assert (spec.image_size, spec.num_patches, spec.width, spec.num_parameters) == (384, 576, 768, 93_176_064)
    assert spec.mean == (0.5, 0.5, 0.5)


def test_statistics_come_from_timms_own_config():
    assert VISION["timm:vit_base_patch16_clip_224.openai"].mean == VISION["clip-b16-224"].mean


def test_misspelled_model_gets_the_nearest_names_and_no_long_list():
    with pytest.raises(UnknownNameError, match="'resnet50'") as error:
        VISION["timm:resnet5o"]
    assert len(str(error.value)) < 400


def test_unknown_tag_gets_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"resnet50\.a1_in1k"):
        VISION["timm:resnet50.a1_in1"]


def test_missing_timm_is_answered_with_the_install_line(monkeypatch: pytest.MonkeyPatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find_spec(name, *rest))
    with pytest.raises(MissingPackageError, match=r'pip install "vlm\[timm\]"'):
        VISION["timm:resnet50"]


def test_embeddings_cannot_be_the_feature_layer():
    with pytest.raises(ConfigError, match="1 is the first block"):
        build("timm:test_vit", feature_layer=0)


@pytest.mark.parametrize("in_folder", [True, False])
def test_weights_load_from_a_file_or_folder_of_a_classifier(in_folder: bool, tmp_path: Path, tiles):
    classifier = timm.create_model("test_vit", num_classes=7).eval()
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    tower = build("timm:test_vit", source=tmp_path if in_folder else tmp_path / "model.safetensors")
    expected = classifier.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in tower.model.state_dict().items())


def test_missing_tensor_is_named(tmp_path: Path):
    tensors = timm.create_model("test_vit", num_classes=0).state_dict()
    del tensors["blocks.1.norm1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm1\.bias"):
        build("timm:test_vit", source=tmp_path)


def test_missing_folder_and_unreachable_hub_are_one_line_with_a_remedy():
    with pytest.raises(CheckpointError, match="no file /no/such/folder"):
        build("timm:test_vit", source="/no/such/folder")
    with pytest.raises(CheckpointError, match=r"--model.vision-source") as error:
        build("timm:resnet10t.c3_in1k", source=VISION["timm:resnet10t.c3_in1k"].source)
    assert "\n" not in str(error.value)

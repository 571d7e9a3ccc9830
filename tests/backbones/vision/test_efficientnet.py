from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.assets import package_file
from vlm.backbones.loading import Load
from vlm.backbones.vision import efficientnet
from vlm.backbones.vision.efficientnet import PACKAGE_FILE, SPECS, SameConv2d, renamed
from vlm.errors import CheckpointError

SPEC = SPECS["efficientnet-lite0-64"]


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLM_CACHE", str(cache))


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return torch.load(package_file(efficientnet.PACKAGE, PACKAGE_FILE, extra="demo"), weights_only=True)


@pytest.fixture(scope="module")
def reference(published) -> torch.nn.Module:
    """timm's port of the TensorFlow model, with the same weights: its tensors come in the same order under other names."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    return model


def test_all_296_published_tensors_are_used_but_the_two_of_the_classifier(published):
    tower = efficientnet.EfficientNetLite0(SPEC)
    assert len(published) == 296
    assert renamed(published).keys() == tower.state_dict().keys()
    assert len(tower.state_dict()) == 294
    tower.load_state_dict(renamed(published))  # strict


@pytest.mark.parametrize(("name", "stage"), [("efficientnet-lite0-64", 4), ("efficientnet-lite0-224", None)])
def test_features_equal_timms_with_the_same_weights(name: str, stage: int | None, tiles, reference):
    spec = SPECS[name]
    tower = spec.build(spec, Load(source=spec.source))
    images = (tiles(spec.image_size).float() - 127) / 128
    with torch.no_grad():
        hidden = reference.bn1(reference.conv_stem(images))
        for block in reference.blocks if stage is None else reference.blocks[: stage + 1]:
            hidden = block(hidden)
        expected = reference.bn2(reference.conv_head(hidden)) if stage is None else hidden
        features = tower(tiles(spec.image_size))
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_pooled_vector_is_what_timms_classifier_sees(tiles, reference):
    tower = SPEC.build(SPEC, Load(source=SPEC.source))
    with torch.no_grad():
        expected = reference.forward_head(reference.forward_features((tiles(64).float() - 127) / 128), pre_logits=True)
        torch.testing.assert_close(tower.pooled(tiles(64)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "kernel", "stride", "out"), [(5, 3, 2, 3), (4, 3, 2, 2), (7, 5, 1, 7), (2, 5, 2, 1)])
def test_same_padding_gives_the_side_divided_by_the_stride_rounded_up(side: int, kernel: int, stride: int, out: int):
    assert SameConv2d(1, 1, kernel, stride)(torch.zeros(1, 1, side, side)).shape[-1] == out


@pytest.mark.parametrize(
    ("feature_layer", "width", "num_patches"), [(0, 32, 1024), (1, 16, 1024), (4, 80, 16), (5, 112, 16), (-2, 320, 4), (-1, 1280, 4)]
)
def test_feature_layer_counts_stem_stages_and_head(feature_layer: int, width: int, num_patches: int, tiles):
    tower = SPEC.build(SPEC, Load(source=None, feature_layer=feature_layer))
    assert (tower.width, tower.num_patches) == (width, num_patches)
    assert tower(tiles(64)).shape == (2, num_patches, width)


def test_batch_norm_keeps_its_statistics_in_train_mode(tiles):
    tower = SPEC.build(SPEC, Load(source=SPEC.source))
    evaluated = tower.eval()(tiles(64))
    statistics = tower.stem[1].running_mean.clone()
    wrapper = torch.nn.Sequential(tower).train()
    assert torch.equal(wrapper[0](tiles(64)), evaluated)
    assert torch.equal(tower.stem[1].running_mean, statistics)


def test_conversion_happens_once(monkeypatch: pytest.MonkeyPatch):
    SPEC.build(SPEC, Load(source=SPEC.source))
    monkeypatch.setattr(efficientnet, "package_file", lambda *_, **__: pytest.fail("converted again"))
    SPEC.build(SPEC, Load(source=SPEC.source))


def test_package_file_that_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr(efficientnet, "SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="expected 0000"):
        SPEC.build(SPEC, Load(source=SPEC.source))
    assert not list(tmp_path.iterdir())


def test_weights_load_from_a_folder_and_a_missing_tensor_is_named(tmp_path: Path, tiles):
    tower = SPEC.build(SPEC, Load(source=SPEC.source))
    file = tmp_path / "model.safetensors"
    save_file(tower.state_dict(), file)
    assert torch.equal(SPEC.build(SPEC, Load(source=tmp_path))(tiles(64)), tower(tiles(64)))
    tensors = load_file(file)
    del tensors["head.0.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"head\.0\.weight"):
        SPEC.build(SPEC, Load(source=file))


def test_missing_weights_are_one_line_with_a_remedy(tmp_path: Path):
    with pytest.raises(CheckpointError, match="Leave --model"):
        SPEC.build(SPEC, Load(source=tmp_path))

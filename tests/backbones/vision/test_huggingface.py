import json
from dataclasses import replace

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.backbones.vision.huggingface import FUSED
from vlm.errors import CheckpointError

TINY = ["tiny-clip", "tiny-siglip", "tiny-dinov2"]


def save(name: str, folder) -> torch.nn.Module:
    """A tiny tower as transformers saves it."""
    spec = VISION[name]
    tower = spec.build(spec, Load(spec.source))
    tower.model.save_pretrained(str(folder))
    return tower


def load(source) -> torch.nn.Module:
    spec = VISION[f"hf:{source}"]
    return spec.build(spec, Load(spec.source))


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_folder_gives_the_features_and_sizes_of_its_family(name: str, tiles, tmp_path):
    tower, expected = save(name, tmp_path), VISION[name]
    spec = VISION[f"hf:{tmp_path}"]
    if name == "tiny-dinov2":  # the entry reads 32 px and interpolates, the folder says 56
        assert (spec.image_size, spec.num_patches) == (56, 49)
    else:
        torch.testing.assert_close(load(tmp_path)(tiles(32)), tower(tiles(32)))
        assert (spec.image_size, spec.num_patches) == (expected.image_size, expected.num_patches)
    assert (spec.width, spec.num_parameters, spec.lora_targets) == (expected.width, expected.num_parameters, expected.lora_targets)
    assert (spec.mean, spec.std) == (expected.mean, expected.std)


def test_statistics_and_tokens_to_drop_come_from_the_folder(tiles, tmp_path):
    tower = save("tiny-siglip", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 2}))
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_prefix_tokens": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = VISION[f"hf:{tmp_path}"]
    assert (spec.mean, spec.resample, spec.num_patches) == ((0.1, 0.2, 0.3), "bilinear", 15)
    tower.normalize = type(tower.normalize)(replace(VISION["tiny-siglip"], mean=spec.mean, std=(1.0, 1.0, 1.0)))
    torch.testing.assert_close(load(tmp_path)(tiles(32)), tower(tiles(32))[:, 1:])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 1}))
    with pytest.raises(CheckpointError, match=r"resizes with PIL's filter 1; known: 2 \(bilinear\), 3 \(bicubic\)"):
        VISION[f"hf:{tmp_path}"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(CheckpointError, match=r"has 0.5 for image_mean or image_std; expected three numbers"):
        VISION[f"hf:{tmp_path}"]


def test_other_models_and_broken_folders_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="type 'llama'; as a vision backbone, hf: takes clip_vision_model"):
        VISION[f"hf:{tmp_path}"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": FUSED}))
    with pytest.raises(CheckpointError, match="fused backbone, but names no parts"):
        VISION[f"hf:{tmp_path}"]
    with pytest.raises(CheckpointError, match="There is no folder"):
        VISION[f"hf:{tmp_path}/none"]

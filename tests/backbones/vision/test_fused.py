from pathlib import Path

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import IMAGENET_MEAN
from vlm.backbones.vision.fused import fused_spec
from vlm.backbones.vision.tiny import SPECS as TINY
from vlm.errors import ConfigError, UnknownNameError


def build(name: str, **options) -> torch.nn.Module:
    return VISION[name].build(VISION[name], Load(**({"source": None} | options)))


@pytest.mark.parametrize("feature_layer", [None, -1])
def test_features_are_those_of_the_parts_side_by_side(feature_layer: int | None, tiles):
    fused, dino, siglip = (build(name, feature_layer=feature_layer) for name in ("tiny-fused", "tiny-dinov2", "tiny-siglip"))
    assert torch.equal(fused(tiles(32)), torch.cat([dino(tiles(32)), siglip(tiles(32))], dim=2))
    assert torch.equal(fused.pooled(tiles(32)), torch.cat([dino.pooled(tiles(32)), siglip.pooled(tiles(32))], dim=1))


def test_blocks_are_those_of_all_parts():
    assert len(build("tiny-fused").blocks()) == 6


def test_any_names_can_be_fused_on_the_command_line(tiles):
    spec = VISION["fused:tiny-siglip+tiny-clip"]
    assert spec.parts == ("tiny-siglip", "tiny-clip")
    assert build("fused:tiny-siglip+tiny-clip")(tiles(32)).shape == (2, 16, 32)
    assert VISION["fused:dinov2-vit-l+siglip-vit-so400m"].width == VISION["dinosiglip-224"].width


def test_parts_of_unequal_patch_counts_are_refused_with_both_counts():
    with pytest.raises(ConfigError, match="clip-l14-224 224 px, 256 patches, siglip-so400m-384 384 px, 729 patches"):
        VISION["fused:clip-l14-224+siglip-so400m-384"]


def test_a_single_part_is_refused():
    with pytest.raises(ConfigError, match="two or more different parts"):
        VISION["fused:tiny-clip+tiny-clip"]


def test_unknown_part_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny-clip'"):
        VISION["fused:tiny-siglip+tiny-clp"]


def test_padding_color_is_the_first_towers():
    assert VISION["dinosiglip-384"].fill == tuple(int(255 * value) for value in IMAGENET_MEAN)


def test_sources_of_the_parts_are_found_by_name_in_a_folder(tmp_path: Path, tiles):
    parts = {name: TINY[name] for name in ("tiny-dinov2", "tiny-siglip")}
    spec = fused_spec(parts)
    original = spec.build(spec, Load(source=None))
    with torch.no_grad():
        for tower, name in zip(original.towers, parts, strict=True):
            next(tower.parameters()).add_(1)
            tower.model.save_pretrained(tmp_path / name)
    assert torch.equal(spec.build(spec, Load(source=tmp_path))(tiles(32)), original(tiles(32)))


def test_prismatic_dinoclip_runs_clip_with_gelu_and_ours_with_quick_gelu():
    with torch.device("meta"):
        theirs, ours = build("dinoclip-vit-l-336px"), build("dinoclip-336")
    assert isinstance(theirs.towers[1].blocks()[0].mlp.activation_fn, torch.nn.GELU)
    assert not isinstance(ours.towers[1].blocks()[0].mlp.activation_fn, torch.nn.GELU)

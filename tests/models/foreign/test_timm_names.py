"""Towers of timm, renamed, against timm's own features: of the last block but one, without norm and prefix tokens."""

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.errors import CheckpointError
from vlm.models.foreign.timm_names import Tower, described, from_timm, resized
from vlm.models.foreign.towers import write_fused, write_vision

timm = pytest.importorskip("timm")
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
KINDS = {
    "siglip": ({"class_token": False, "global_pool": "map", "act_layer": "gelu"}, 1e-6),
    "clip": ({"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": torch.nn.LayerNorm}, 1e-5),
    "dinov2": ({"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5, "act_layer": "gelu"}, 1e-6),
}
ACT = {"siglip": "gelu", "clip": "quick_gelu", "dinov2": "gelu"}
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3}


def theirs(family: str, **changed) -> VisionTransformer:
    tower = VisionTransformer(**(SIZE | KINDS[family][0] | changed)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tower


def tower_of(family: str, **changed) -> Tower:
    return Tower(**({"family": family, "num_heads": 3, "act": ACT[family], "image_size": 32, "epsilon": KINDS[family][1]} | changed))


def features(tower: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return tower.get_intermediate_layers((pixels / 255 - mean) / std, n=[len(tower.blocks) - 2])[0]


def written(tower: VisionTransformer, family: str, folder, **changed) -> str:
    tensors, config = from_timm(tower.state_dict(), tower_of(family, **changed), origin="timm")
    write_vision(tensors, config, STATISTICS, folder, origin=folder)
    return f"hf:{folder}"


def load(name: str) -> torch.nn.Module:
    spec = VISION[name]
    return spec.build(spec, Load(spec.source)).eval()


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_features_are_those_of_timm(family, tmp_path):
    tower = theirs(family)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    name = written(tower, family, tmp_path / "tower")
    torch.testing.assert_close(load(name)(pixels), features(tower, pixels), atol=1e-5, rtol=0)
    assert (VISION[name].num_patches, VISION[name].width, VISION[name].mean) == (16, 24, (0.5, 0.4, 0.3))


@torch.no_grad()
def test_position_embeddings_are_resized_as_timm_does_on_loading(tmp_path):
    large = theirs("dinov2", img_size=56)
    small = theirs("dinov2")
    state = large.state_dict()
    from timm.layers import resample_abs_pos_embed

    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (4, 4), num_prefix_tokens=0)
    small.load_state_dict(state)
    assert torch.equal(resized(large.state_dict()["pos_embed"], 4), state["pos_embed"])
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(load(written(large, "dinov2", tmp_path / "tower", resizes=True))(pixels), features(small, pixels), atol=1e-5, rtol=0)


@torch.no_grad()
def test_fused_towers_lie_in_subfolders(tmp_path):
    towers = {"dino": theirs("dinov2"), "siglip": theirs("siglip")}
    for name, family in (("dino", "dinov2"), ("siglip", "siglip")):
        written(towers[name], family, tmp_path / "with+plus" / name)
    write_fused(tmp_path / "with+plus", list(towers))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = torch.cat([features(tower, pixels) for tower in towers.values()], dim=-1)
    torch.testing.assert_close(load(f"hf:{tmp_path / 'with+plus'}")(pixels), expected, atol=1e-5, rtol=0)


def test_what_is_no_vision_transformer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks patch_embed.proj.weight: it is no vision transformer of timm"):
        from_timm({}, tower_of("siglip"), origin="x")
    state = theirs("siglip").state_dict() | {"blocks.0.attn.q_norm.weight": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"x holds blocks.0.attn.q_norm.weight"):
        from_timm(state, tower_of("siglip"), origin="x")
    with pytest.raises(CheckpointError, match="a grid of 4 x 4 patches, pictures of 64 px have 8 x 8"):
        from_timm(theirs("siglip").state_dict(), tower_of("siglip", image_size=64), origin="x")
    with pytest.raises(CheckpointError, match="features of block 2 of 3"):
        described(tower_of("siglip"), {"depth": 3, "feature_block": 2}, origin="x")

"""Heads against the published modules that they stand for, rebuilt here from their papers' code."""

from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.conf.contrastive import HeadConfig
from vlm.errors import ConfigError, UnknownNameError
from vlm.models.alignment_head import KINDS, NORMALIZERS, AlignmentHead


def test_every_kind_maps_to_the_joint_space_and_learns():
    for name, kind in KINDS.items():
        assert kind.paper
        head = AlignmentHead(8, 8 if name == "identity" else 6, HeadConfig(name))
        out = head(torch.randn(3, 8).half())  # as the cache stores it
        assert out.shape == (3, head.out_width) and out.dtype == torch.float32
        out.square().sum().backward() if name != "identity" else None
        assert all(weight.grad is not None for weight in head.parameters()), name


def test_ape_is_apds_text_projection():
    """`text_proj` of github.com/sramshetty/APD: bias-free linear layers in a ModuleList with ReLUs between."""
    sizes = [7, 7, 7, 5]
    theirs = nn.ModuleList([nn.Linear(7, sizes[0], bias=False)])
    for before, after in pairwise(sizes):
        theirs += [nn.ReLU(), nn.Linear(before, after, bias=False)]
    head = AlignmentHead(7, 5, HeadConfig("ape", dropout=0.3)).eval()
    head.adaptor.load_state_dict(theirs.state_dict(), strict=True)
    x = wanted = torch.randn(4, 7)
    for layer in theirs:
        wanted = layer(wanted)
    torch.testing.assert_close(head(x), wanted, atol=0, rtol=0)


def test_ape_has_apds_sizes_at_scale():
    with torch.device("meta"):
        head = AlignmentHead(4096, 512, HeadConfig("ape"))
    assert sum(weight.numel() for weight in head.parameters()) == 3 * 4096**2 + 4096 * 512


class LinearBlock(nn.Module):
    """Of LLM2CLIP's llm2clip/eva_clip/model.py, expansion 2."""

    def __init__(self, dim: int):
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(2 * dim, dim))
        self.ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.ln(x))


@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_residual_loads_llm2clips_adaptor_strictly_and_equals_it(normalize: str):
    theirs = nn.Sequential(*[LinearBlock(8) for _ in range(4)], nn.LayerNorm(8), nn.Linear(8, 5))
    head = AlignmentHead(8, 5, HeadConfig("residual", normalize_input=normalize))  # type: ignore[arg-type]
    head.load_state_dict({f"adaptor.{name}": tensor for name, tensor in theirs.state_dict().items()}, strict=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(head(x), theirs(F.normalize(x, dim=-1) if normalize == "l2" else x), atol=0, rtol=0)


def test_residual_has_llm2clips_parameters_at_full_size():
    """The B-16 checkpoint has 361 M: 86.2 M of the image tower, 1.0 M of its projection, and this adaptor."""
    with torch.device("meta"):
        head = AlignmentHead(4096, 1280, HeadConfig("residual"))
    assert sum(weight.numel() for weight in head.parameters()) == 273_769_728
    shapes = {name: tuple(weight.shape) for name, weight in head.named_parameters() if name.startswith(("adaptor.0.", "adaptor.5."))}
    assert shapes == {
        "adaptor.0.fn.0.weight": (8192, 4096),
        "adaptor.0.fn.0.bias": (8192,),
        "adaptor.0.fn.3.weight": (4096, 8192),
        "adaptor.0.fn.3.bias": (4096,),
        "adaptor.0.ln.weight": (4096,),
        "adaptor.0.ln.bias": (4096,),
        "adaptor.5.weight": (1280, 4096),
        "adaptor.5.bias": (1280,),
    }


def test_glu_is_sails_star_block():
    head = AlignmentHead(6, 4, HeadConfig("glu"))
    block = head.adaptor
    assert block.f1.weight.shape == block.f2.weight.shape == (48, 6)
    x = 9 * torch.randn(3, 6)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    gate = (normed @ block.f1.weight.T).clamp(0, 6)
    assert (gate == 0).any()
    torch.testing.assert_close(head(x), gate * (normed @ block.f2.weight.T) @ block.g.weight.T)


def test_standardized_input_uses_given_statistics_and_stores_them():
    features = torch.randn(500, 6) * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0, 0.0]) + torch.tensor([0.0, 50.0, 3.0, 0.0, 0.0, 2.0])
    head = AlignmentHead(6, 4, HeadConfig("linear", normalize_input="standardize"))
    head.standardize_with(features.mean(0), features.std(0))
    normalized = head.normalize(features)
    assert normalized[:, :2].std(0).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert normalized.mean(0).abs().max() < 1e-3
    assert normalized[:, 5].abs().max() == 0  # never moves, and does not become noise
    other = AlignmentHead(6, 4, HeadConfig("linear", normalize_input="standardize"))
    other.load_state_dict(head.state_dict(), strict=True)
    torch.testing.assert_close(other(features), head(features), atol=0, rtol=0)


def test_input_of_extreme_channels_survives_half_weights():
    features = torch.randn(4, 6) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 3000.0])
    exact = AlignmentHead(6, 4, HeadConfig("linear", normalize_input="layernorm"))
    rounded = AlignmentHead(6, 4, HeadConfig("linear", normalize_input="layernorm"))
    rounded.load_state_dict(exact.state_dict())
    seen = rounded.to(torch.bfloat16)(features)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(seen.float(), exact(features), atol=3e-2, rtol=3e-2)


def test_the_start_is_a_function_of_torchs_seed():
    def start(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return AlignmentHead(8, 4, HeadConfig("residual")).adaptor[0].fn[0].weight

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize("kind", ["ape", "residual", "glu"])
def test_deep_heads_start_with_distinct_vectors_of_moderate_size(kind: str):
    out = AlignmentHead(64, 32, HeadConfig(kind))(torch.randn(200, 64)).detach()
    cosines = F.normalize(out, dim=1) @ F.normalize(out, dim=1).T
    assert 0.05 < float(out.std()) < 5
    assert float((cosines - torch.eye(200)).abs().mean()) < 0.5


def test_dropout_acts_in_training_only():
    head, x = AlignmentHead(8, 4, HeadConfig("glu", dropout=0.5)), torch.randn(3, 8)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_a_linear_head_can_start_as_the_identity():
    x = torch.randn(3, 5)
    assert torch.equal(AlignmentHead(5, 5, HeadConfig("linear", start="identity"))(x), x)
    with pytest.raises(ConfigError, match="this encoder has 6, the joint space 5"):
        AlignmentHead(6, 5, HeadConfig("linear", start="identity"))


def test_settings_name_the_kinds_and_normalizations_that_there_are():
    kinds, normalizations = (get_args(get_type_hints(HeadConfig)[name]) for name in ("kind", "normalize_input"))
    assert sorted(kinds) == sorted(KINDS) and sorted(normalizations) == sorted(NORMALIZERS)


def test_settings_without_effect_are_refused():
    for options in ({"hidden_width": 9}, {"num_layers": 2}, {"dropout": 0.1}):
        with pytest.raises(ConfigError, match="kind 'linear' has no use for"):
            AlignmentHead(4, 4, HeadConfig("linear", **options))
    with pytest.raises(ConfigError, match="kind 'glu' has no use for num_layers 2"):
        AlignmentHead(4, 4, HeadConfig("glu", num_layers=2))
    with pytest.raises(ConfigError, match="kind 'identity' has no use for normalize_input 'l2'"):
        AlignmentHead(4, 4, HeadConfig("identity", normalize_input="l2"))
    with pytest.raises(ConfigError, match="kind 'ape' has no use for start 'identity'"):
        AlignmentHead(4, 4, HeadConfig("ape", start="identity"))
    with pytest.raises(ConfigError, match="so statistics have no effect"):
        AlignmentHead(4, 4, HeadConfig("ape")).standardize_with(torch.zeros(4), torch.ones(4))


def test_impossible_heads_are_refused():
    typo = HeadConfig("ape")
    object.__setattr__(typo, "kind", "residul")  # beartype, which checks annotations in tests alone, would refuse it before us
    with pytest.raises(UnknownNameError, match=r"No alignment head named 'residul'. Did you mean 'residual'"):
        AlignmentHead(4, 4, typo)
    with pytest.raises(ConfigError, match="this encoder has 8, the joint space 4"):
        AlignmentHead(8, 4, HeadConfig("identity"))
    with pytest.raises(ConfigError, match=r"--model\.\*-head\.dropout is 1\.0"):
        HeadConfig(dropout=1.0)
    with pytest.raises(ConfigError, match=r"--model\.\*-head\.hidden-width is 0"):
        HeadConfig(hidden_width=0)

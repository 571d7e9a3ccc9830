"""Quantized towers under adapters; with the real bitsandbytes where it is installed."""

import importlib.util
import sys
import types
from dataclasses import replace

import pytest
import torch

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora, fold, is_lora, linear_layers
from vlm.backbones.quantization import check_installed, dequantize, is_quantized, quantize
from vlm.errors import ConfigError, MissingPackageError
from vlm.types import Documents

installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra qlora)")
IDS = torch.randint(20, 380, (2, 9), generator=torch.Generator().manual_seed(3))
NF4 = torch.tensor(  # the 16 levels of arXiv:2305.14314, appendix E
    [
        *(
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
        ),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ]
)


def llama(kind: str = "none", dtype: torch.dtype = torch.float32):
    spec = LANGUAGE["tiny-llama"]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    language = build_language(replace(spec, architecture={**spec.architecture, **sizes}), Load(None, dtype=dtype))
    if kind != "none":
        quantize(language.model, kind, linear_layers(language.model))
    return language


def hidden(language) -> torch.Tensor:
    return language(language.embed(IDS).detach(), Documents.one_per_row(*IDS.shape))


def test_missing_package_is_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"--model.lora.language.quantize nf4 needs the package 'bitsandbytes'.*pip install"):
        check_installed("nf4", "--model.lora.language.quantize")


def test_version_that_needs_a_gpu_is_refused(monkeypatch):
    old = types.ModuleType("bitsandbytes")
    old.__version__ = "0.45.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", old)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: old)
    with pytest.raises(ConfigError, match=r"int8 needs bitsandbytes 0.46 or newer.*0.45.0 is installed. Run: pip install --upgrade bitsandbytes"):
        check_installed("int8", "--model.lora.language.quantize")


@installed
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_linear_layers_are_quantized_and_head_and_embeddings_are_not(kind):
    check_installed(kind, "--model.lora.language.quantize")
    model = llama(kind).model
    assert {name for name, layer in model.named_modules() if is_quantized(layer)} == set(linear_layers(llama().model))
    assert not is_quantized(model.lm_head)
    assert model.get_input_embeddings().weight.dtype == torch.float32


@installed
def test_layers_that_no_whole_number_of_blocks_fills_stay_and_are_counted(caplog):
    model = build_language(LANGUAGE["tiny-llama"], Load(None)).model  # width 32, but 64 inside the MLP
    quantize(model, "nf4", linear_layers(model))
    assert {name.split(".")[-1] for name, layer in model.named_modules() if is_quantized(layer)} == {"down_proj"}
    assert "nf4: 12 of 14 linear layers stay as they are: their width is not a multiple of 64" in caplog.text


@installed
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_are_the_nearest_levels_and_dequantized_ones_compute_the_same(kind):
    plain, language = llama(), llama(kind)
    before = hidden(language)
    dequantize(language.model)
    torch.testing.assert_close(hidden(language), before, atol=1e-5 if kind == "nf4" else 0.2, rtol=1e-4)  # int8 rounds the inputs too
    name = "model.layers.0.mlp.up_proj"
    weight, seen = plain.model.get_submodule(name).weight.detach(), language.model.get_submodule(name).weight
    if kind == "nf4":
        blocks = weight.flatten().view(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        nearest = NF4[(blocks / largest).unsqueeze(-1).sub(NF4).abs().argmin(-1)] * largest
        expected = nearest.view_as(weight)
    else:
        largest = weight.abs().amax(1, keepdim=True)
        expected = (weight / largest * 127).round() / 127 * largest
    torch.testing.assert_close(
        seen, expected, atol=(1e-3 if kind == "nf4" else 1 / 127) * float(weight.abs().max()), rtol=0.05
    )  # nf4's block maxima are quantized as well


@installed
@pytest.mark.parametrize(("kind", "adapter"), [("nf4", "lora"), ("nf4", "rslora"), ("nf4", "dora"), ("int8", "lora"), ("int8", "rslora")])
def test_an_adapter_learns_over_a_quantized_tower_and_folds_into_it(kind, adapter):
    language = llama(kind)
    start = hidden(language)
    add_lora(language.model, LoRAOptions(rank=4, alpha=8.0, dropout=0.0, targets="all-linear", kind=adapter, quantize=kind))
    torch.testing.assert_close(hidden(language), start, atol=1e-5 if kind == "nf4" else 0.2, rtol=1e-4)
    adapters = [weight for name, weight in language.named_parameters() if is_lora(name)]
    assert [weight for weight in language.parameters() if weight.requires_grad] == adapters
    optimizer = torch.optim.Adam(adapters, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (hidden(language) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    after = hidden(language)
    dequantize(language.model)
    fold(language.model)
    assert {type(language.model.get_submodule(name)) for name in linear_layers(language.model)} == {torch.nn.Linear}
    torch.testing.assert_close(hidden(language), after, atol=1e-5 if kind == "nf4" else 0.2, rtol=1e-4)

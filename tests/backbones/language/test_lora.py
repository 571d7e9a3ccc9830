"""Low-rank adapters, injected through peft."""

import pytest
import torch

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.lora import LoRAOptions, is_lora
from vlm.backbones.loading import Load
from vlm.errors import ConfigError
from vlm.types import Documents


def options(targets: tuple[str, ...] | str, *, rank: int = 4) -> LoRAOptions:
    return LoRAOptions(rank=rank, alpha=8.0, dropout=0.0, targets=targets)


def family(name: str) -> LoRAOptions:
    return options(LANGUAGE[name].lora_targets)


def embeds(lm) -> torch.Tensor:
    ids = torch.randint(20, 380, (2, 9), generator=torch.Generator().manual_seed(3))
    return lm.embed(ids).detach()


def adapted(lm) -> set[str]:
    """Last words of the layers that have an adapter."""
    return {path.split(".lora_")[0].split(".")[-1] for path, _ in lm.named_parameters() if is_lora(path)}


def test_a_new_adapter_changes_no_output(tiny, name):
    docs = Documents.one_per_row(2, 9)
    bare, lm = tiny(name), tiny(name, lora=family(name))
    assert torch.equal(bare(embeds(bare), docs), lm(embeds(lm), docs))


def test_the_adapter_alone_is_trainable(tiny, name):
    lm = tiny(name, lora=family(name))
    assert {path for path, p in lm.named_parameters() if p.requires_grad} == {path for path, _ in lm.named_parameters() if is_lora(path)}
    assert adapted(lm) == set(LANGUAGE[name].lora_targets)


def test_a_step_changes_the_adapter_alone(tiny, name):
    lm = tiny(name, lora=family(name))
    before = {path: p.detach().clone() for path, p in lm.named_parameters()}
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=0.1)
    direction = torch.randn(2, 9, 32)
    for _ in range(2):  # the first step moves B alone: A's gradient has B as a factor, which is zero
        optimizer.zero_grad()
        (lm(embeds(lm), Documents.one_per_row(2, 9)) * direction).sum().backward()
        optimizer.step()
    changed = {path for path, p in lm.named_parameters() if not torch.equal(p, before[path])}
    assert changed == {path for path in before if is_lora(path)}


def test_the_adapter_is_fp32_over_a_bf16_base(tiny):
    lm = tiny("tiny-llama", lora=family("tiny-llama"), load=Load(None, dtype=torch.bfloat16))
    types = {(is_lora(path), p.dtype) for path, p in lm.named_parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    hidden = lm(embeds(lm), Documents.one_per_row(2, 9))
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in lm.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("tiny-llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("tiny-phi", {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
        ("tiny-phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("tiny-qwen2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_all_linear_leaves_the_head_out(tiny, name, layers):
    assert adapted(tiny(name, lora=options("all-linear"))) == layers


def test_a_regular_expression_chooses_layers(tiny):
    lm = tiny("tiny-llama", lora=options(r".*\.layers\.1\..*\.(q|v)_proj"))
    assert adapted(lm) == {"q_proj", "v_proj"}
    assert all(".layers.1." in path for path, _ in lm.named_parameters() if is_lora(path))


@pytest.mark.parametrize("targets", [("q_proj", "qkv_proj"), r".*\.qkv_proj", ()])
def test_targets_that_match_nothing_are_refused_with_the_layers_there_are(tiny, targets):
    with pytest.raises(ConfigError, match=r"LoRA targets .* match no linear layer.*: .*down_proj.*q_proj"):
        tiny("tiny-llama", lora=options(targets))


def test_targets_that_are_no_regular_expression_are_refused_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match=r"LoRA targets '\(' are no regular expression: .*position 0.*all-linear") as caught:
        options("(")
    assert "\n" not in str(caught.value)


def test_an_adapter_has_rank_times_both_widths_a_layer(tiny):
    lm = tiny("tiny-llama", lora=options(("q_proj", "v_proj"), rank=3))
    assert sum(p.numel() for p in lm.parameters() if p.requires_grad) == 2 * 3 * ((32 + 32) + (32 + 16))


def test_the_demo_adapter_has_the_measured_size():
    """0.92 M parameters at rank 16, counted on the meta device."""
    from vlm.backbones.language.lora import add_lora

    spec = LANGUAGE["smollm2-135m-instruct"]
    with torch.device("meta"):
        model = spec.build(spec, Load(None))
        add_lora(model, options(spec.lora_targets, rank=16))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 921_600

"""Adapters, injected through peft: every kind on every tower, against the papers' formulas computed by hand."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, adapted_layers, add_lora, fold, is_idle, is_lora, linear_layers, renew_magnitudes
from vlm.backbones.vision import VISION
from vlm.backbones.vision.layers_in_use import layers_in_use
from vlm.errors import ConfigError
from vlm.types import Documents

KINDS = ["lora", "rslora", "dora"]
LANGUAGES = ["tiny-llama", "tiny-mistral", "tiny-phi", "tiny-phi3", "tiny-qwen2", "tiny-qwen3"]
BACKBONES = ["tiny-siglip", "tiny-clip", "tiny-dinov2", "tiny-fused"]
IDS = torch.randint(20, 380, (2, 9), generator=torch.Generator().manual_seed(3))
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


@dataclass
class Tower:
    """A tower, the module that adapters are added to, and what they may be added to."""

    module: Any
    model: Any
    layers: list[str]

    def output(self) -> torch.Tensor:
        """Hidden states of random ids, or patch features of random pixels."""
        if self.module is self.model:
            return self.module(PIXELS)
        return self.module(self.module.embed(IDS).detach(), Documents.one_per_row(*IDS.shape))

    def adapted(self) -> set[str]:
        """Last words of the layers that have an adapter."""
        return {name.split(".")[-1] for name, _ in adapted_layers(self.model)}


def options(targets: tuple[str, ...] | str = "all-linear", *, rank: int = 4, kind: str = "lora") -> LoRAOptions:
    return LoRAOptions(rank=rank, alpha=8.0, dropout=0.0, targets=targets, kind=kind)


def bare(name: str, dtype: torch.dtype = torch.float32) -> Tower:
    if name in VISION:
        vision = VISION[name].build(VISION[name], Load(VISION[name].source, dtype=dtype)).eval()
        return Tower(vision, vision, layers_in_use(vision))
    language = build_language(LANGUAGE[name], Load(None, dtype=dtype))
    return Tower(language, language.model, linear_layers(language.model))


def adapt(name: str, lora: LoRAOptions | None = None, **others: Any) -> Tower:
    tower = bare(name, **others)
    add_lora(tower.model, lora or family(name), among=tower.layers)
    return tower


def family(name: str, **others: Any) -> LoRAOptions:
    return options((VISION if name in VISION else LANGUAGE)[name].lora_targets, **others)


@torch.no_grad()
def stir(tower: Tower) -> None:
    generator = torch.Generator().manual_seed(5)
    for path, weight in tower.module.named_parameters():
        if is_lora(path):
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("name", [*LANGUAGES, *BACKBONES])
def test_a_new_adapter_changes_no_output(name):
    assert torch.equal(bare(name).output(), adapt(name).output())


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_dora_adapter_changes_the_output_by_rounding_alone(name, dtype):
    before, after = bare(name, dtype=dtype).output(), adapt(name, family(name, kind="dora"), dtype=dtype).output()
    torch.testing.assert_close(after, before, atol=2e-6 if dtype == torch.float32 else 2e-3, rtol=2e-6 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("name", [*LANGUAGES, *BACKBONES])
def test_the_adapter_alone_is_trainable_and_on_the_familys_layers(name):
    tower = adapt(name)
    assert all(weight.requires_grad == is_lora(path) for path, weight in tower.module.named_parameters())
    assert tower.adapted() == set(family(name).targets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-phi", "tiny-siglip", "tiny-fused"])
def test_two_steps_change_every_adapter_weight_and_nothing_else(name, kind):
    tower = adapt(name, family(name, kind=kind))
    before = {path: weight.detach().clone() for path, weight in tower.module.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in tower.module.parameters() if weight.requires_grad], lr=0.1)
    direction = torch.randn(tower.output().shape)
    for _ in range(2):  # the first step moves B alone: A's gradient has B as a factor, which is zero
        optimizer.zero_grad()
        (tower.output() * direction).sum().backward()
        optimizer.step()
    changed = {path for path, weight in tower.module.named_parameters() if not torch.equal(weight, before[path])}
    assert changed == {path for path in before if is_lora(path)}
    assert any("lora_magnitude_vector" in path for path in changed) == (kind == "dora")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-fused"])
def test_the_adapter_is_fp32_over_a_bf16_tower(name, kind):
    tower = adapt(name, family(name, kind=kind), dtype=torch.bfloat16)
    assert {(is_lora(path), weight.dtype) for path, weight in tower.module.named_parameters()} == {(True, torch.float32), (False, torch.bfloat16)}
    output = tower.output()
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in tower.module.parameters() if weight.requires_grad)


def by_hand(kind: str, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, magnitude: torch.Tensor | None, rank: int) -> torch.Tensor:
    """The papers' formulas, in double precision: alpha is 8."""
    scale = 8.0 / {"lora": rank, "rslora": math.sqrt(rank), "dora": rank}[kind]
    weight = weight.double() + scale * (b.double() @ a.double())
    if magnitude is None:
        return weight
    return torch.stack([row / row.square().sum().sqrt() * length for row, length in zip(weight, magnitude.double(), strict=True)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "layer"), [("tiny-phi", "model.layers.0.mlp.fc1"), ("tiny-siglip", "model.encoder.layers.1.mlp.fc2")])
def test_an_adapted_layer_computes_what_the_paper_says(name, layer, kind):
    tower = adapt(name, options(("fc1", "fc2"), rank=4, kind=kind))
    stir(tower)
    module = tower.model.get_submodule(layer)
    magnitude = module.lora_magnitude_vector["default"].weight if kind == "dora" else None
    weight = by_hand(kind, module.base_layer.weight, module.lora_A["default"].weight, module.lora_B["default"].weight, magnitude, 4)
    inputs = torch.randn(5, module.in_features)
    expected = F.linear(inputs.double(), weight, module.base_layer.bias.double())
    torch.testing.assert_close(module(inputs).double(), expected, atol=1e-5, rtol=1e-5)
    assert options(rank=4, kind=kind).scale == module.scaling["default"]
    fold(tower.model)
    torch.testing.assert_close(tower.model.get_submodule(layer).weight.double(), weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*LANGUAGES, *BACKBONES])
def test_a_folded_adapter_leaves_a_plain_tower_with_the_same_output(name, kind):
    tower = adapt(name, family(name, kind=kind))
    stir(tower)
    untouched, before = bare(name).output(), tower.output()
    fold(tower.model)
    assert not any(is_lora(path) or "base_layer" in path for path, _ in tower.module.named_parameters())
    assert {path for path, _ in tower.module.named_parameters()} == {path for path, _ in bare(name).module.named_parameters()}
    torch.testing.assert_close(tower.output(), before, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, untouched, atol=1e-3)


def test_magnitudes_follow_weights_that_are_replaced_under_a_new_adapter():
    tower = adapt("tiny-llama", options(kind="dora"))
    with torch.no_grad():
        for path, weight in tower.model.named_parameters():
            if not is_lora(path):
                weight *= 1.5
    renew_magnitudes(tower.model)
    after = tower.output()
    fresh = bare("tiny-llama")
    fresh.model.load_state_dict({path.replace(".base_layer", ""): tensor for path, tensor in tower.model.state_dict().items() if not is_lora(path)})
    torch.testing.assert_close(after, fresh.output(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_idle_until_one_value_of_one_b_is_not_zero(kind):
    tower = adapt("tiny-siglip", family("tiny-siglip", kind=kind))
    assert is_idle(tower.model)
    _, last = list(adapted_layers(tower.model))[-1]
    with torch.no_grad():
        last.lora_B["default"].weight[0, 0] = 1e-12
    assert not is_idle(tower.model)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("tiny-llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("tiny-phi", {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
        ("tiny-phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("tiny-qwen2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("tiny-siglip", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("tiny-dinov2", {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}),
        ("tiny-fused", {"q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "fc1", "fc2"}),
    ],
)
def test_all_linear_leaves_the_head_out(name, layers):
    assert adapt(name, options("all-linear")).adapted() == layers


@pytest.mark.parametrize(
    ("name", "targets", "path"),
    [("tiny-llama", r".*\.layers\.1\..*\.(q|v)_proj", ".layers.1."), ("tiny-fused", r"towers\.1\..*\.(q|v)_proj", "towers.1.")],
)
def test_a_regular_expression_chooses_layers(name, targets, path):
    tower = adapt(name, options(targets))
    assert tower.adapted() == {"q_proj", "v_proj"}
    assert all(path in name for name, _ in adapted_layers(tower.model))


def test_both_towers_of_a_fused_backbone_are_adapted():
    assert {name.split(".")[1] for name, _ in adapted_layers(adapt("tiny-fused").model)} == {"0", "1"}


@pytest.mark.parametrize("targets", [("q_proj", "qkv_proj"), r".*\.qkv_proj", (), "lm_head"])
def test_targets_that_match_nothing_are_refused_with_the_layers_there_are(targets):
    with pytest.raises(ConfigError, match=r"LoRA targets .* match no linear layer.*: .*down_proj.*q_proj"):
        adapt("tiny-llama", options(targets))


def test_targets_that_are_no_regular_expression_are_refused_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match=r"LoRA targets '\(' are no regular expression: .*position 0.*all-linear") as caught:
        options("(")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "lengths"), [("lora", 0), ("rslora", 0), ("dora", 32 + 16)])
def test_an_adapter_has_rank_times_both_widths_a_layer(kind, lengths):
    tower = adapt("tiny-llama", options(("q_proj", "v_proj"), rank=3, kind=kind))
    count = sum(weight.numel() for weight in tower.module.parameters() if weight.requires_grad)
    assert count == 2 * (3 * ((32 + 32) + (32 + 16)) + lengths)


def test_the_demo_adapter_has_the_measured_size():
    """0.92 M parameters at rank 16, counted on the meta device."""
    spec = LANGUAGE["smollm2-135m-instruct"]
    with torch.device("meta"):
        model = spec.build(spec, Load(None))
        add_lora(model, options(spec.lora_targets, rank=16))
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 921_600


@pytest.mark.parametrize("name", [name for name in VISION if not name.startswith("efficientnet")])
def test_family_targets_exist_in_every_backbone_of_the_registry(name):
    spec = VISION[name]
    if spec.package:
        pytest.importorskip(spec.package)
    small = {"num_hidden_layers": 2} if "num_hidden_layers" in spec.architecture else {}
    spec = replace(spec, architecture={**spec.architecture, **small})
    with torch.device("meta"):
        vision: Any = spec.build(spec, Load(None))
        add_lora(vision, options(spec.lora_targets), among=layers_in_use(vision))
    assert all(module.base_layer.in_features >= 16 for _, module in adapted_layers(vision))

"""Low-rank adapters on a tower, through peft, injected in place: module names stay. Knows no family, and no difference between towers.

LoRA (Hu et al. 2021, arXiv:2106.09685), rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) and DoRA (Liu et al. 2024, arXiv:2402.09353).
"""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.errors import ConfigError

ADAPTER = "default"  # the name that peft gives to the only adapter of a layer


@dataclass(frozen=True)
class LoRAOptions:
    """A resolved adapter setting.

    Attributes:
        rank: Rank of the two matrices, at least 1.
        alpha: The adapter's output is multiplied by alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        dropout: Probability of dropping an input element of the adapter.
        targets: Names of layers (their last words), `all-linear` for all but the head, or a regular expression on whole module names.
        kind: lora, rslora, or dora, which also trains the length of each row of the weight.
        quantize: How the tower's own linear layers are stored: none (as loaded), nf4 or int8.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str
    kind: Literal["lora", "rslora", "dora"] = "lora"
    quantize: Literal["none", "nf4", "int8"] = "none"

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ConfigError(
                    f"LoRA targets {self.targets!r} are no regular expression: {error}. "
                    "Write `family`, `all-linear`, or an expression that matches whole module names, such as '.*(q|v)_proj'."
                ) from error

    @property
    def scale(self) -> float:
        """Factor on the product of the two matrices."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


def add_lora(model: nn.Module, options: LoRAOptions, *, among: Collection[str] | None = None) -> None:
    """Add an adapter in place; afterwards only the adapter's weights are trainable, and the output is what it was.

    Args:
        model: A tower.
        options: The adapter.
        among: Names of the layers that may get one; None for `linear_layers(model)`.

    Raises:
        ConfigError: If a target matches none of these layers.
    """
    import peft

    layers = chosen_layers(linear_layers(model) if among is None else among, options.targets)
    alpha: Any = options.alpha  # peft's annotation says int; it only divides
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        target_modules="|".join(map(re.escape, layers)),
        bias="none",
        use_rslora=options.kind == "rslora",
        use_dora=options.kind == "dora",
    )
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name))
        if is_lora(name):
            parameter.data = parameter.data.to(torch.float32)  # steps of 1e-4 on values of 1e-2 vanish in bf16
    renew_magnitudes(model)


def is_lora(parameter_name: str) -> bool:
    """True for the name of an adapter weight."""
    return ".lora_" in parameter_name


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that can be adapted: all that are called as modules, but the head of a language model."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [name for name, module in model.named_modules() if _is_adaptable(module) and module is not head]


def _is_adaptable(module: nn.Module) -> bool:
    # torch's attention reads the weights of its output layer past the module, and past an adapter on it
    return isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def chosen_layers(layers: Collection[str], targets: tuple[str, ...] | str) -> list[str]:
    """Those of the layers that the targets name.

    Raises:
        ConfigError: If a target names none of them.
    """
    if targets == "all-linear" and layers:
        return list(layers)
    tests = [rf"(.*\.)?{re.escape(target)}" for target in targets] if isinstance(targets, tuple) else [targets]
    matches = [[name for name in layers if re.fullmatch(test, name)] for test in tests]
    missing = [target for target, matched in zip([targets] if isinstance(targets, str) else targets, matches, strict=True) if not matched]
    if missing or not matches:
        names = ", ".join(sorted({name.split(".")[-1] for name in layers})) or "none"
        raise ConfigError(f"LoRA targets {', '.join(missing) or '(none)'} match no linear layer. Linear layers of this model: {names}.")
    wanted = {name for matched in matches for name in matched}
    return [name for name in layers if name in wanted]


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each layer that has an adapter."""
    yield from ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer"))


@torch.no_grad()
def renew_magnitudes(model: nn.Module) -> None:
    """Set DoRA's magnitudes to the lengths of the rows of the weights as they are, in fp32; of other adapters nothing changes.

    For new adapters: peft rounds them to the type of the weights, and bf16 would change the output by 0.4 %. Weights that are loaded under a new
    adapter have other lengths as well.
    """
    for _, layer in adapted_layers(model):
        if ADAPTER in layer.lora_magnitude_vector:
            layer.lora_magnitude_vector[ADAPTER].weight.data = _own_weight(layer).norm(dim=1)


def is_idle(model: nn.Module) -> bool:
    """True if a tower's adapters are as they start: all B are zero. One optimizer step at any rate makes them differ from zero."""
    return not any(bool(layer.lora_B[ADAPTER].weight.any()) for _, layer in adapted_layers(model))


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Add each adapter to the weight of its layer, in fp32, and put the plain layer in its place."""
    for name, layer in list(adapted_layers(model)):
        plain = layer.get_base_layer()
        plain.weight = nn.Parameter(folded_weight(layer), requires_grad=False)
        model.set_submodule(name, plain)


def folded_weight(layer: Any) -> Float[Tensor, "out in"]:
    """W + s B A in fp32; with DoRA, its rows at the trained lengths (equation 5 of arXiv:2402.09353)."""
    weight = _own_weight(layer) + layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    if ADAPTER not in layer.lora_magnitude_vector:
        return weight
    return layer.lora_magnitude_vector[ADAPTER].weight.float().unsqueeze(1) * weight / weight.norm(dim=1, keepdim=True)


def _own_weight(layer: Any) -> Float[Tensor, "out in"]:
    """The weight under an adapter, in fp32, whether quantized or not."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer.get_base_layer()).detach().float()

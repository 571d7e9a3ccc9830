"""Low-rank adapters on a language model (Hu et al. 2021, arXiv:2106.09685) through peft, injected in place: module names stay. Knows no family."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError


@dataclass(frozen=True)
class LoRAOptions:
    """A resolved adapter setting.

    Attributes:
        rank: Rank of the two matrices, at least 1.
        alpha: The adapter's output is multiplied by alpha / rank.
        dropout: Probability of dropping an input element of the adapter.
        targets: Names of layers (their last words), `all-linear` for all but the head, or a regular expression on whole module names.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ConfigError(
                    f"LoRA targets {self.targets!r} are no regular expression: {error}. "
                    "Write `family`, `all-linear`, or an expression that matches whole module names, such as '.*(q|v)_proj'."
                ) from error


def add_lora(model: nn.Module, options: LoRAOptions) -> None:
    """Add an adapter in place; afterwards only the adapter's weights are trainable, and the output is what it was.

    Raises:
        ConfigError: If a target matches no linear layer.
    """
    import peft

    _check_targets(model, options.targets)
    targets = list(options.targets) if isinstance(options.targets, tuple) else options.targets
    alpha: Any = options.alpha  # peft's annotation says int; it only divides
    config = peft.LoraConfig(r=options.rank, lora_alpha=alpha, lora_dropout=options.dropout, target_modules=targets, bias="none")
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name))
        if is_lora(name):
            parameter.data = parameter.data.to(torch.float32)  # steps of 1e-4 on values of 1e-2 vanish in bf16


def is_lora(parameter_name: str) -> bool:
    """True for the name of an adapter weight."""
    return ".lora_" in parameter_name


def _check_targets(model: nn.Module, targets: tuple[str, ...] | str) -> None:
    if targets == "all-linear":
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, tuple):
        missing = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in linear)]
    else:
        missing = [] if any(re.fullmatch(targets, name) for name in linear) else [targets]
    if missing or not targets:
        names = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise ConfigError(f"LoRA targets {', '.join(missing) or '(none)'} match no linear layer. Linear layers of this model: {names}.")

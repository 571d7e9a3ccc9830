"""Low-rank adapters on a language model through peft, injected in place: module names stay, adapter weights are fp32. Knows no family."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from vlm.errors import ConfigError


@dataclass(frozen=True)
class LoRAOptions:
    """A resolved adapter setting: `targets` are layer names, `all-linear`, or a regular expression."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str


def add_lora(model: nn.Module, options: LoRAOptions) -> None:
    """Add an adapter in place; afterwards only the adapter's weights are trainable.

    Raises:
        ConfigError: If the targets match no linear layer.
    """
    import peft

    _check_targets(model, options.targets)
    targets = list(options.targets) if isinstance(options.targets, tuple) else options.targets
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets, bias="none")
    model.requires_grad_(False)
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parameter.data = parameter.data.to(torch.float32)  # fp32: steps of 1e-4 on values of 1e-2 vanish in bf16
            parameter.requires_grad_(True)


def is_lora(parameter_name: str) -> bool:
    """True for the name of an adapter weight."""
    return ".lora_" in parameter_name


def _check_targets(model: nn.Module, targets: tuple[str, ...] | str) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == "all-linear":
        return
    if isinstance(targets, tuple):
        missing = [t for t in targets if not any(name.split(".")[-1] == t for name in linear)]
    else:
        missing = [] if any(re.fullmatch(targets, name) for name in linear) else [targets]
    if missing:
        names = sorted({name.split(".")[-1] for name in linear})
        raise ConfigError(f"LoRA targets {missing} match no linear layer. Linear layers here: {', '.join(names)}.")

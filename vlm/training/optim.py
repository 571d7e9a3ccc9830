"""Learning-rate tables to AdamW groups and schedules. A stage is nothing but such a table: parts without a rate are frozen."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from vlm.conf.schema import Schedule
from vlm.distributed.shard import whole
from vlm.errors import ConfigError


def make_optimizer(model: nn.Module, stage: Schedule) -> torch.optim.AdamW:
    """AdamW with the part's rate for each weight that is trained; weight decay on matrices only.

    Raises:
        ConfigError: If a part has a rate but nothing that could be trained.
    """
    groups = []
    for part in stage.lr.trained:
        weights = [p for p in getattr(model, part).parameters() if p.requires_grad]
        if not weights:
            raise ConfigError(f"--stage.lr.{part} is set, but the part {part!r} has no trainable weight. Leave the rate out.")
        rate = getattr(stage.lr, part)
        for decay, chosen in ((stage.weight_decay, [p for p in weights if p.ndim > 1]), (0.0, [p for p in weights if p.ndim <= 1])):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "part": part})
    return torch.optim.AdamW(groups, betas=stage.betas, fused=True)  # one pass over each weight instead of a dozen


def set_rates(optimizer: torch.optim.Optimizer, stage: Schedule, step: int, num_steps: int) -> None:
    """Set the rates of a step, counted from 1. They depend on the step alone, so a resumed run needs no scheduler's state."""
    factor = rate_factor(step - 1, stage, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = getattr(stage.lr, group["part"]) * factor


def rate_factor(step: int, stage: Schedule, num_steps: int) -> float:
    """Share of the peak rate at a step counted from 0.

    Warm-up rises linearly and reaches the peak at step `warmup_ratio * num_steps`. Then cosine (Loshchilov and Hutter 2016, arXiv:1608.03983),
    wsd (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395), or constant.
    """
    warmup = math.ceil(stage.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    span = max(1, num_steps - warmup)
    progress = min(1.0, (step - warmup) / span)
    return stage.final_lr_ratio + (1 - stage.final_lr_ratio) * DECAYS[stage.schedule](progress, stage.decay_ratio)


DECAYS = {
    "cosine": lambda progress, _: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": lambda progress, decay: 1.0 if progress <= 1 - decay else (1 - progress) / decay,
    "constant": lambda progress, _: 1.0,
}


def rates_by_part(optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
    """Current learning rate of each part."""
    return {group["part"]: group["lr"] for group in optimizer.param_groups}


def norms_by_part(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Norm of the gradient of each part's trained weights; not finite where a value is not."""
    grads: dict[str, list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        grads.setdefault(group["part"], []).extend(weight.grad for weight in group["params"] if weight.grad is not None)
    return {part: whole(nn.utils.get_total_norm(tensors)).item() for part, tensors in grads.items()}


def clip_by_norm(weights: Iterable[nn.Parameter], norm: float, largest: float | None) -> None:
    """Scale the gradients so that their norm, which is given, is `largest` at most; None: they stay (Pascanu et al. 2013, arXiv:1211.5063)."""
    if largest is not None:
        nn.utils.clip_grads_with_norm_(weights, largest, torch.tensor(norm))

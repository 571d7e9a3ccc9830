"""A hash by which a tower's own weights are known again, whatever their type, and with or without an adapter."""

import hashlib
import math
from itertools import count

import torch
from torch import nn

from vlm.backbones.lora import is_lora

VALUES_PER_TENSOR = 4096  # another training run, a merge or a corrupted file changes nearly every value


def own_name(name: str) -> str:
    """The name that a weight had before peft put an adapter around its layer."""
    return name.replace(".base_layer.", ".")


def fingerprint(module: nn.Module, *, adapters: bool = False) -> str:
    """A hash of a part's own weights: names, shapes, and evenly spaced values of each. Adapters are left out unless `adapters` is true.

    Of a tensor up to VALUES_PER_TENSOR all values are hashed, of a larger one between a few less and twice as many (see `_stride`), from all of its
    columns if it has rows enough. What it can miss: a change of few values, between those that are hashed, and one below bf16's rounding.

    Values are rounded to bf16 first, so that the same weights give the same fingerprint whether loaded in fp32 or in bf16.
    """
    digest = hashlib.sha256()
    own = {own_name(name): tensor for name, tensor in module.state_dict().items() if adapters or not is_lora(name)}
    for name, tensor in sorted(own.items()):
        flat = tensor.detach().flatten()
        sample = flat[:: _stride(flat.numel())].to("cpu", torch.float32).to(torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _stride(size: int) -> int:
    """The least step from `size // VALUES_PER_TENSOR` on that has no factor in common with the size; one that had would visit the same columns in all rows."""
    return next(step for step in count(max(1, size // VALUES_PER_TENSOR)) if math.gcd(step, size) == 1)

"""A guard against the commonest waste of bf16 runs: matrix products that are computed in fp32 all the same, because a weight or an input was left in it.

Watches one forward and backward pass. Counts with the formulas of `torch.utils.flop_counter`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from vlm.errors import ConfigError

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward}  # not attention: on CPU it is faster in fp32
LARGEST_SHARE = 0.01  # of the FLOPs; rotary angles and the like are always in fp32


class _Products(TorchDispatchMode):
    """Counts the FLOPs of matrix products by their type, and those in fp32 by module."""

    def __init__(self) -> None:
        super().__init__()
        self.modules = ModuleTracker()
        self.total = 0
        self.slow: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            count = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.total += count
            if any(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in args):
                inner = max((name for name in self.modules.parents if name != "Global"), key=len, default="the loss")
                self.slow[inner] += count
        return out


@contextmanager
def refuse_slow_products() -> Iterator[None]:
    """Look at the matrix products inside, which should be in bf16.

    Raises:
        ConfigError: If more than LARGEST_SHARE of the FLOPs were computed in fp32; the modules are named.
    """
    products = _Products()
    with products.modules, products:
        yield
    share = products.slow.total() / max(1, products.total)
    if share > LARGEST_SHARE:
        worst = ", ".join(f"{name} ({count / products.total:.0%})" for name, count in products.slow.most_common(3))
        raise ConfigError(
            f"{share:.0%} of the matrix products of this bf16 run are computed in fp32, by {worst}. A part of its own keeps weights or inputs in fp32: "
            "let it follow the type of its input, or use --precision fp32."
        )

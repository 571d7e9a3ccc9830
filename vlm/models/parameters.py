"""Parameters of each part, how many of them are trained, of which types, and the adapters: printed when a run starts, stored with its checkpoints."""

import math
from typing import Any

from torch import nn

from vlm.backbones.lora import LoRAOptions, adapted_layers

SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
HEADER = ("part", "parameters", "trained", "share", "types", "adapter")


def parameter_rows(model: Any) -> list[dict[str, Any]]:
    """A row for each part: its name, parameters, how many are trained, their types, and its adapter in words; adapters count as parameters of their part."""
    rows = []
    for part in model.PARTS:
        module, options = getattr(model, part), model.adapters.get(part)
        sizes = [(_num_values(weight), weight.requires_grad) for weight in module.parameters()]
        row = {"part": part, "parameters": sum(size for size, _ in sizes), "trained": sum(size for size, trained in sizes if trained)}
        rows.append(row | {"types": _types(module, options), "adapter": "" if options is None else _words(module, options)})
    return rows


def parameter_table(model: Any) -> list[str]:
    """The rows as lines under a header, with their sum."""
    rows = parameter_rows(model)
    total = {key: sum(row[key] for row in rows) for key in ("parameters", "trained")}
    return [_line(*HEADER), *(_cells(**row) for row in rows), _cells(part="all", types=[], adapter="", **total)]


def _cells(*, part: str, parameters: int, trained: int, types: list[str], adapter: str) -> str:
    share = 100 * trained / parameters if parameters else 0.0
    return _line(part, f"{parameters:,}", f"{trained:,}", f"{share:.2f} %", ", ".join(types), adapter)


def _line(part: str, parameters: str, trained: str, share: str, types: str, adapter: str) -> str:
    return f"  {part:10} {parameters:>15} {trained:>15} {share:>9}  {types:12} {adapter}".rstrip()


def _num_values(weight: Any) -> int:
    """Values of a weight; two of nf4 are stored in a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def _types(module: nn.Module, options: LoRAOptions | None) -> list[str]:
    names = {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()}
    stored = {"uint8": "nf4"} if options is not None and options.quantize == "nf4" else {}
    return sorted((SHORT | stored).get(name, name) for name in names)


def _words(module: nn.Module, options: LoRAOptions) -> str:
    count = sum(1 for _ in adapted_layers(module))
    return f"{options.kind} of rank {options.rank}, scale {options.scale:g}, on {count} layers"

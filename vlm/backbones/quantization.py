"""Frozen linear layers in 4 or 8 bits, through bitsandbytes: QLoRA's nf4 (Dettmers et al. 2023, arXiv:2305.14314) and LLM.int8 (arXiv:2208.07339).

Knows layers by name; what is quantized is for its callers to choose. Weights are quantized where they are, before they go to their device.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vlm.backbones.loading import require
from vlm.errors import ConfigError

log = logging.getLogger(__name__)

NF4_BLOCK = 64  # values that share a scale; the CPU kernel of bitsandbytes 0.50 reads rows that no whole number of blocks fills wrongly
OUTLIER = 6.0  # LLM.int8, section 3.2: columns with larger inputs are multiplied unquantized


def check_installed(kind: str, setting: str) -> None:
    """Refuse a quantization that this machine cannot make.

    Args:
        kind: nf4 or int8.
        setting: Name of the setting, for messages.

    Raises:
        MissingPackageError: If bitsandbytes is not installed.
        ConfigError: If it is too old to quantize without a GPU.
    """
    require("bitsandbytes", f"{setting} {kind}", extra="qlora")
    bitsandbytes = _bitsandbytes()
    if "cpu" not in getattr(bitsandbytes, "supported_torch_devices", ()):
        raise ConfigError(
            f"{setting} {kind} needs bitsandbytes 0.46 or newer, which quantizes before weights go to their device; {bitsandbytes.__version__} is "
            "installed. Run: pip install --upgrade bitsandbytes, or set the quantization to none."
        )


def quantize(model: nn.Module, kind: str, layers: Sequence[str]) -> None:
    """Replace linear layers by quantized ones, in place; their biases and other layers stay.

    Args:
        model: A tower, on the CPU.
        kind: nf4 or int8.
        layers: Names of linear layers; nf4 leaves those out whose rows are not a multiple of NF4_BLOCK, and says so.

    Raises:
        ConfigError: If that leaves none.
    """
    linear: dict[str, Any] = {name: model.get_submodule(name) for name in layers}
    fitting = [name for name, layer in linear.items() if kind != "nf4" or layer.in_features % NF4_BLOCK == 0]
    if not fitting:
        raise ConfigError(
            f"None of the {len(layers)} linear layers has an input width that is a multiple of {NF4_BLOCK}, as nf4 needs. Use int8 or none."
        )
    if len(fitting) < len(layers):
        log.warning(
            "nf4: %d of %d linear layers stay as they are: their width is not a multiple of %d", len(layers) - len(fitting), len(layers), NF4_BLOCK
        )
    for name in fitting:
        model.set_submodule(name, QUANTIZERS[kind](linear.pop(name)).eval())
    tower: Any = model
    tower.is_loaded_in_4bit, tower.is_loaded_in_8bit = kind == "nf4", kind == "int8"  # peft looks there for the adapters that it needs


def _bitsandbytes() -> Any:
    return importlib.import_module("bitsandbytes")


def _nf4(layer: Any) -> nn.Module:
    bnb = _bitsandbytes()
    quantized = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta"
    )
    quantized.support_avx512bf16_for_cpu = False  # it would repack the weights for inference, and no training step could follow
    quantized.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized).to(layer.weight.device)
    quantized.bias = layer.bias
    return quantized


def _int8(layer: Any) -> nn.Module:
    bnb = _bitsandbytes()
    quantized = bnb.nn.Linear8bitLt(
        layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=OUTLIER, device="meta"
    )
    quantized.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False).to(layer.weight.device)
    quantized.bias = layer.bias
    return quantized


QUANTIZERS: dict[str, Callable[[Any], nn.Module]] = {"nf4": _nf4, "int8": _int8}


def is_quantized(layer: nn.Module) -> bool:
    """True for a layer that `quantize` made."""
    return type(layer).__module__.startswith("bitsandbytes.") and hasattr(layer, "weight")  # by name, so that nothing is imported


def dequantize(model: nn.Module) -> None:
    """Put plain linear layers, in fp32, in the place of quantized ones; their weights are those that the quantized ones compute with."""
    from peft.utils.integrations import dequantize_module_weight

    for name, layer in [(name, layer) for name, layer in model.named_modules() if is_quantized(layer)]:
        quantized: Any = layer
        plain = nn.Linear(quantized.in_features, quantized.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(quantized).detach().float(), requires_grad=False)
        plain.bias = quantized.bias
        model.set_submodule(name, plain)

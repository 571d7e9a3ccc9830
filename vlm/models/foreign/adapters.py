"""LoRA adapters of foreign checkpoints: read as peft saved them, folded into a tower, or kept as an adapter of ours. Knows no format."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.loading import read_json
from vlm.backbones.lora import linear_layers
from vlm.conf.schema import LoRAConfig
from vlm.errors import CheckpointError
from vlm.models.foreign.tensors import one_line, read_folder

SETTING = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_KINDS = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern")


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Setting and weights of an adapter that peft saved, names as they are in the model.

    Raises:
        CheckpointError: If a file is missing, or it is not plain LoRA.
    """
    setting = read_json(folder / SETTING)
    kinds = [key for key in OTHER_KINDS if setting.get(key)]
    if setting.get("peft_type") != "LORA" or kinds:
        raise CheckpointError(
            f"{folder} is not a plain LoRA adapter ({kinds[0] if kinds else setting.get('peft_type')!r}); merge it with peft first."
        )
    if missing := [key for key in ("r", "lora_alpha") if not isinstance(setting.get(key), int | float) or not setting[key] > 0]:
        raise CheckpointError(f"{folder / SETTING} says no positive {missing[0]}. It is not whole; copy it again.")
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} has no {' and no '.join(FILES)}. It is not whole; copy it again.")
    return setting, {name.removeprefix("base_model.model.").removeprefix("vision_model."): tensor for name, tensor in read_folder(file).items()}


def merged(tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor], setting: Mapping[str, Any], *, origin: Path) -> dict[str, Tensor]:
    """A tower's weights with an adapter folded in: W + alpha / r B A, in fp32.

    Raises:
        CheckpointError: If the adapter is for a layer that the tower does not have.
    """
    folded, scale = dict(tensors), setting["lora_alpha"] / setting["r"]
    for layer in sorted({name.split(".lora_")[0] for name in adapter}):
        first, second = adapter.get(f"{layer}.lora_A.weight"), adapter.get(f"{layer}.lora_B.weight")
        if f"{layer}.weight" not in folded or first is None or second is None:
            raise CheckpointError(f"{origin} has an adapter for {layer}, which the tower does not have or which is not whole. Name its base.")
        weight = folded[f"{layer}.weight"]
        folded[f"{layer}.weight"] = (weight.float() + scale * second.float() @ first.float()).to(torch.promote_types(weight.dtype, first.dtype))
    return folded


def in_memory(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved weights by the names that they have in a model, where adapters have names."""
    return {re.sub(r"(\.lora_[AB])\.weight$", r"\1.default.weight", name): tensor for name, tensor in adapter.items()}


def kept(adapter: Mapping[str, Tensor], setting: Mapping[str, Any], config: Any, *, origin: Path) -> LoRAConfig:
    """Our setting of an adapter that peft saved; see `setting_of`."""
    dropout = float(setting.get("lora_dropout") or 0)
    return setting_of(in_memory(adapter), config, alpha=float(setting["lora_alpha"]), dropout=dropout, origin=origin)


def setting_of(adapter: Mapping[str, Tensor], config: Any, *, alpha: float, dropout: float, origin: Path) -> LoRAConfig:
    """Our setting of an adapter on a language model.

    Args:
        adapter: Its weights, by their names in memory.
        config: transformers' config of the language model.
        alpha: Its alpha.
        dropout: Its dropout in training.
        origin: Where it comes from, for messages.

    Raises:
        CheckpointError: If it has several ranks, or is on other layers than the blocks' linear ones.
    """
    adapted = {name.split(".lora_")[0] for name in adapter}
    layers = _linear_layers(config, origin)
    if strange := sorted(adapted - layers):
        raise CheckpointError(
            f"{origin} has a LoRA adapter on {', '.join(strange[:3])}; adapters on linear layers of the blocks are supported. Merge it with peft first."
        )
    ranks = sorted({tensor.shape[0] for name, tensor in adapter.items() if ".lora_A." in name})
    if len(ranks) != 1:
        raise CheckpointError(f"{origin} has a LoRA adapter with matrices of rank {', '.join(map(str, ranks)) or 'none'}; expected one rank.")
    words = sorted({name.split(".")[-1] for name in adapted})
    everywhere = adapted == {name for name in layers if name.split(".")[-1] in words}
    targets = rf".*\.({'|'.join(words)})" if everywhere else "|".join(sorted(name.replace(".", r"\.") for name in adapted))
    return LoRAConfig(rank=ranks[0], alpha=alpha, dropout=dropout, targets=targets)


def _linear_layers(config: Any, origin: Path) -> set[str]:
    import transformers

    with one_line(f"The config of the language model of {origin}"), torch.device("meta"):
        return set(linear_layers(transformers.AutoModelForCausalLM.from_config(config)))

"""The checkpoint of ours that an import writes: a connector in `weights.safetensors`, towers as folders beside it. Knows no format.

A tower that the foreign checkpoint holds, or that ours cannot name, lies in the folder; one that is as published is named in `model.json`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import LanguageSpec, check_source
from vlm.backbones.loading import Load, is_folder
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import VisionSpec
from vlm.conf.schema import VisionLanguageConfig
from vlm.errors import CheckpointError, ConfigError, VLMError
from vlm.models import checkpoint
from vlm.models.build import build
from vlm.models.foreign.tensors import check, read_folder
from vlm.models.foreign.towers import (
    drop_tokens,
    language_config,
    read_tokenizer,
    statistics_of,
    vision_config,
    write_language,
    write_vision,
)

LANGUAGE_FOLDER, VISION_FOLDER = "language", "vision"
INSIDE_LANGUAGE, INSIDE_VISION = checkpoint.INSIDE + LANGUAGE_FOLDER, checkpoint.INSIDE + VISION_FOLDER


@dataclass(frozen=True)
class Sources:
    """What the user names beside the checkpoint; empty where it is to be found.

    Attributes:
        vision: Folder or hub id of the vision backbone.
        language: Folder or hub id of the base language model.
        tokenizer: Folder or hub id of the tokenizer, where it does not lie beside the language model.
        template: Chat template.
    """

    vision: str = ""
    language: str = ""
    tokenizer: str = ""
    template: str = ""


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
        folder: The checkpoint.
        config: Its composition.
        notes: What the user should know, a sentence each.
    """

    folder: Path
    config: VisionLanguageConfig
    notes: tuple[str, ...] = ()


def finish(
    folder: Path, config: VisionLanguageConfig, connector: Mapping[str, Tensor], adapters: Mapping[str, Tensor] | None = None, *, origin: Path
) -> None:
    """Write connector, adapters and `model.json` beside the towers, once the whole model has been built of them.

    Args:
        folder: Where the towers lie.
        config: The composition; towers inside the folder by `checkpoint.INSIDE`.
        connector: The connector's weights, by its own names.
        adapters: The language model's adapter, by its own names.
        origin: Where connector and adapter come from, for messages.

    Raises:
        CheckpointError: If a weight is missing, unknown or of another shape.
    """
    model = build(checkpoint.anchored(config, folder), precision="bf16")  # fingerprints are of values in bf16; half the memory
    state = {f"connector.{name}": tensor for name, tensor in connector.items()} | {f"language.{name}": t for name, t in (adapters or {}).items()}
    expected = checkpoint.trained_state(model)
    what = "connector and adapter" if adapters else "connector"
    check(state, expected, what=what, origin=origin, remedy="Name the towers that it was trained with.")
    checkpoint.write_model(state, checkpoint.model_values(model, config), folder)


def sequential(tensors: Mapping[str, Tensor], *, origin: Path, activation: str = "gelu", bias: bool = True) -> tuple[str, dict[str, Tensor]]:
    """Name and weights of the connector that is a stack of linear layers with activations between.

    Args:
        tensors: `0.weight`, `0.bias`, `2.weight` ... as in `nn.Sequential`, or `weight` and `bias` of a single layer.
        origin: Where they come from, for messages.
        activation: A key of `vlm.connectors.mlp.ACTIVATIONS`.
        bias: False if the layers have none; then ours are zero.

    Raises:
        CheckpointError: If they are not such a stack.
    """
    places = sorted({int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdigit()})
    single = set(tensors) <= {"weight", "bias"} and "weight" in tensors
    if not single and (not places or places != list(range(0, 2 * len(places), 2)) or any(f"{place}.weight" not in tensors for place in places)):
        raise CheckpointError(
            f"{origin} has a connector of {', '.join(tensors) or 'no tensors'}; expected linear layers with activations between them."
        )
    starts = [""] if single else [f"{place}." for place in places]
    weights = [tensors[f"{start}weight"] for start in starts]
    if flat := [f"{start}weight" for start, weight in zip(starts, weights, strict=True) if weight.ndim != 2]:
        raise CheckpointError(
            f"The connector of {origin} has {flat[0]} of shape {tuple(tensors[flat[0]].shape)}; a linear layer's has two dimensions."
        )
    if not bias:
        tensors = {f"{start}bias": weight.new_zeros(len(weight)) for start, weight in zip(starts, weights, strict=True)} | dict(tensors)
    wanted = [f"{start}{kind}" for start in starts for kind in ("weight", "bias")]
    missing, surplus = [name for name in wanted if name not in tensors], sorted(set(tensors) - set(wanted))
    if missing or surplus:
        problem = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(surplus)}, which linear layers do not have"
        raise CheckpointError(f"The connector of {origin} {problem}. It is not whole, or of another kind; copy it again.")
    names = [*(f"body.{place}" for place in places[:-1]), "readout"]
    state = {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
    state |= {f"{name}.bias": tensors[f"{start}bias"] for name, start in zip(names, starts, strict=True)}
    if len(weights) == 1:
        width = weights[0].shape[1]
        return "linear", state | {"standardize.mean": torch.zeros(width), "standardize.scale": torch.ones(width)}
    return _mlp_name([weight.shape[0] for weight in weights], weights[0].shape[1], activation), state


def _mlp_name(widths: list[int], in_width: int, activation: str) -> str:
    """The connector's name from the output widths of its layers."""
    hidden, out = widths[:-1], widths[-1]
    if activation == "gelu":
        if hidden == [4 * in_width, out] and in_width * 4 != out:
            return "fused-mlp"
        if all(width == out for width in hidden) and len(widths) in (2, 3):
            return f"mlp{len(widths)}x-gelu"
    return f"mlp:{'x'.join(map(str, hidden))}@{activation}"


def frozen_language(name: str, sources: Sources, folder: Path) -> dict[str, Any]:
    """Fields of the config for a language model that is as published: by name where its source is what the name says, else a copy of the source.

    Raises:
        CheckpointError: If the source has no weights or no tokenizer.
    """
    spec = LANGUAGE[name]
    source = sources.language or str(spec.source)
    if name.startswith("hf:") and not sources.tokenizer:
        return {"language": f"hf:{_place(source)}"}
    if not sources.tokenizer and _is_what_it_says(spec, source):
        return {"language": LANGUAGE.resolve(name), "language_source": _place(sources.language)}
    tensors = read_folder(source)
    rows = next((len(tensor) for key, tensor in tensors.items() if key.endswith("embed_tokens.weight")), 0)
    tokenizer = read_tokenizer(sources.tokenizer or source)
    write_language(tensors, language_config(source, rows), tokenizer, folder / LANGUAGE_FOLDER, origin=Path(source))
    return {"language": INSIDE_LANGUAGE}


def _place(source: str) -> str:
    """A folder by its whole path, so that the checkpoint can be used from elsewhere; a hub id as it is."""
    return str(Path(source).absolute()) if source and is_folder(source) else source


def _is_what_it_says(spec: LanguageSpec, source: str) -> bool:
    try:
        check_source(spec, source)
    except CheckpointError:
        return False
    return True


def frozen_vision(source: str, sources: Sources, folder: Path, *, drops_first: bool) -> dict[str, Any]:
    """Fields of the config for a vision backbone that is as published, by the hub id or folder that a checkpoint names.

    Args:
        source: The hub id; a path on another machine is known by its last word.
        sources: What the user names.
        folder: Where a copy is written, if features are taken otherwise than the family's own way.
        drops_first: Leave out the first token.

    Raises:
        CheckpointError: If nothing is known by that name, and the user names no folder.
    """
    own = sources.vision or (source if Path(source).is_dir() else "")
    place = _place(own) or published_vision(source).source
    config = vision_config(place) if own or not drops_first else None
    if config is not None and drop_tokens(config, first=drops_first):
        module: Any = VISION[f"hf:{place}"].build(VISION[f"hf:{place}"], Load(place))
        write_vision(module.model.state_dict(), config, statistics_of(VISION[f"hf:{place}"]), folder, origin=Path(place))
        return {"vision": INSIDE_VISION}
    return {"vision": f"hf:{place}" if own else published_name(source)}


def published_name(source: str) -> str:
    """The registered name of the vision backbone that is loaded from a hub id, or from a folder on another machine of the same name.

    Raises:
        CheckpointError: If there is none.
    """
    word = source.rstrip("/").split("/")[-1].lower()
    names = [name for name, spec in VISION.items() if not spec.parts and spec.source.split("/")[-1].lower() == word]
    if not names:
        raise CheckpointError(f"No vision backbone is known that is loaded from {source!r}. Name its folder or hub id with --vision-source.")
    return names[0]


def published_vision(source: str) -> VisionSpec:
    """The registry's entry of `published_name`.

    Raises:
        CheckpointError: If there is none.
    """
    return VISION[published_name(source)]


def folder_word(name: str) -> str:
    """A folder's name as the name of a composition."""
    return re.sub(r"[/\\+]", "-", name)


def check_template(name: str) -> str:
    """The name of a chat template that exists.

    Raises:
        ConfigError: If there is none of that name.
    """
    from vlm.backbones.language.chat_templates import find_template

    try:
        return find_template(name).name
    except VLMError as error:
        raise ConfigError(f"--template: {error}") from error

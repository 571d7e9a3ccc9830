"""Towers of foreign checkpoints as folders that transformers and the names `hf:<folder>` load: config, weights, tokenizer. Knows no format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.language.base import tokenizer_at
from vlm.backbones.loading import read_config, read_json
from vlm.backbones.lora import is_lora
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.vision.huggingface import FAMILIES, FILTERS, FUSED, PREFIX_TOKENS
from vlm.backbones.writing import refuse_full_disk, write_tensors
from vlm.errors import CheckpointError
from vlm.models.foreign.tensors import check, one_line

SHARD = "5GB"
AS_WRITTEN = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
LANGUAGE_REMEDY = "Name the language model that was trained with --language-source."
VISION_REMEDY = "Name the vision backbone that was trained with --vision-source."


def language_config(source: str, rows: int | None = None) -> Any:
    """transformers' config of a language model, for an embedding table of so many rows; None for its own.

    Raises:
        CheckpointError: If there is no config, or it is of no language model.
    """
    import transformers

    config = read_config(transformers.AutoConfig, source)
    config = getattr(config, "text_config", config)
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise CheckpointError(f"{source} is of type {config.model_type!r}, not a language model. {LANGUAGE_REMEDY}")
    config.vocab_size = config.vocab_size if rows is None else rows
    return config


def write_language(tensors: Mapping[str, Tensor], config: Any, tokenizer: Any, folder: Path, *, origin: Path) -> None:
    """A language model and its tokenizer as a folder.

    Args:
        tensors: All weights, by transformers' names; a head that is tied to the embeddings may be missing.
        config: transformers' config.
        tokenizer: Its tokenizer.
        folder: The folder to write.
        origin: Where the weights come from, for messages.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape.
    """
    import transformers

    with one_line(f"The config of the language model of {origin}"), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = model.state_dict()
    tensors = dict(tensors)
    if getattr(config, "tie_word_embeddings", False):
        expected.pop(HEAD, None)
        head = tensors.pop(HEAD, None)
        if head is not None and not torch.equal(head, tensors[TABLE]):
            raise CheckpointError(
                f"{origin} has a head of its own, but its config ties the head to the embeddings (tie_word_embeddings). Mend the config."
            )
    check(tensors, expected, what="language model", origin=origin, remedy=LANGUAGE_REMEDY)
    config.architectures = [type(model).__name__]
    write_folder(tensors, config, folder)
    write_tokenizer(tokenizer, folder)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """A tokenizer that gives the same ids when it is loaded again."""
    tokenizer.clean_up_tokenization_spaces = False  # which transformers ignores for these tokenizers, with a warning at every use
    tokenizer.save_pretrained(str(folder))
    if _rules(tokenizer_at(str(folder))) != _rules(tokenizer):  # transformers 5 builds some classes anew, from settings that it does not write
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(read_json(path) | {"tokenizer_class": AS_WRITTEN}, indent=2) + "\n", encoding="utf-8")


def _rules(tokenizer: Any) -> dict[str, Any]:
    """What decides a fast tokenizer's ids."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    return {name: value for name, value in rules.items() if name not in ("padding", "truncation")}


def write_folder(tensors: Mapping[str, Tensor], config: Any, folder: Path) -> None:
    """Weights, in shards where they are large, and config."""
    from huggingface_hub import split_torch_state_dict_into_shards

    folder.mkdir(parents=True)
    refuse_full_disk(folder, sum(tensor.nbytes for tensor in tensors.values()))
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(str(folder))
    plan = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=SHARD)
    for file, names in plan.filename_to_tensors.items():
        write_tensors({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(source: str, *, as_written: bool = False) -> Any:
    """The tokenizer of a folder or hub id.

    Args:
        source: The folder or hub id.
        as_written: Take the rules of a folder's `tokenizer.json`, where transformers 5 builds some classes anew.

    Raises:
        CheckpointError: If there is none.
    """
    import transformers

    try:
        tokenizer = tokenizer_at(source)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("--model.language-source", "--language-source, or its tokenizer with --tokenizer-source")) from error
    if as_written and (Path(source) / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(source)
    return tokenizer


def write_vision(tensors: Mapping[str, Tensor], config: Any, statistics: Mapping[str, Any], folder: Path, *, origin: Path) -> None:
    """A vision backbone as a folder.

    Args:
        tensors: All weights, by transformers' names.
        config: transformers' config, of a type that `hf:` knows.
        statistics: `image_mean`, `image_std` and `resample`.
        folder: The folder to write.
        origin: Where the weights come from, for messages.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape.
    """
    import transformers

    if config.model_type not in FAMILIES:
        raise CheckpointError(f"{origin} has a vision backbone of type {config.model_type!r}; known: {', '.join(FAMILIES)}.")
    with one_line(f"The config of the vision backbone of {origin}"), torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    check(tensors, model.state_dict(), what="vision backbone", origin=origin, remedy=VISION_REMEDY)
    config.architectures = [type(model).__name__]
    write_folder(tensors, config, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(statistics), indent=2) + "\n", encoding="utf-8")


def vision_config(source: str) -> Any:
    """transformers' config of a vision backbone, or of the one in a two-tower model.

    Raises:
        CheckpointError: If there is none.
    """
    import transformers

    config = read_config(transformers.AutoConfig, source)
    return getattr(config, "vision_config", config)


def drop_tokens(config: Any, *, first: bool) -> bool:
    """Note in a vision config whether the first token is left out, where that is not the family's own way; returns whether it had to be noted.

    Raises:
        CheckpointError: If the family is not known.
    """
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"Vision backbones of type {config.model_type!r} cannot be imported; known: {', '.join(FAMILIES)}.")
    own = FAMILIES[config.model_type].prefix_tokens(config)
    if int(first) == own:
        return False
    setattr(config, PREFIX_TOKENS, int(first))
    return True


def vision_weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Weights by the names of today's transformers; a pooling head that is not there is taken out of the config."""
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = any(name.startswith("head.") for name in tensors)
    return tensors


def image_processor(folder: Path) -> dict[str, Any]:
    """What `preprocessor_config.json` or `processor_config.json` says of pictures; empty where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            values = values.get("image_processor", values)
            if "image_mean" in values or "do_resize" in values:
                return values
    return {}


def statistics_from(processor: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Pixel statistics and filter of an image processor, the family's where it says nothing."""
    family = FAMILIES[model_type]
    defaults = {"image_mean": list(family.mean), "image_std": list(family.std), "resample": 3}
    return {name: processor.get(name, value) for name, value in defaults.items()}


def write_fused(folder: Path, parts: list[str]) -> None:
    """What makes subfolders one fused backbone."""
    (folder / "config.json").write_text(json.dumps({"model_type": FUSED, "parts": parts}, indent=2) + "\n", encoding="utf-8")


def statistics_of(spec: VisionSpec) -> dict[str, Any]:
    """Pixel statistics and filter of a spec, by the names of transformers' image processors."""
    numbers = {name: number for number, name in FILTERS.items()}
    return {"image_mean": list(spec.mean), "image_std": list(spec.std), "resample": numbers[spec.resample]}


def split_adapter(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A part's own weights, by the names that they have without an adapter, and the adapter's."""
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if not is_lora(name)}
    return own, {name: tensor for name, tensor in tensors.items() if is_lora(name)}

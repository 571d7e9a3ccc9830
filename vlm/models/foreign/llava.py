"""LLaVA's own layout (haotian-liu/LLaVA): `llava_llama` and `llava_mistral`, whole weights, or a projector, with an adapter or alone, beside a base.

Where the checkpoint does not hold the vision backbone, it is the published one that `mm_vision_tower` names. An adapter's base is a language model,
or a LLaVA that was trained on, of which the language model is taken.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import read_json
from vlm.backbones.writing import new_folder
from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.errors import CheckpointError
from vlm.messages import IMAGE_PLACEHOLDER
from vlm.models.foreign.adapters import SETTING, in_memory, kept, read_adapter
from vlm.models.foreign.assemble import (
    INSIDE_LANGUAGE,
    INSIDE_VISION,
    LANGUAGE_FOLDER,
    VISION_FOLDER,
    Imported,
    Sources,
    check_template,
    finish,
    folder_word,
    frozen_language,
    frozen_vision,
    published_vision,
    sequential,
)
from vlm.models.foreign.tensors import Tensors, one_line, read_folder, read_pickle
from vlm.models.foreign.towers import (
    drop_tokens,
    image_processor,
    language_config,
    read_tokenizer,
    statistics_from,
    vision_config,
    vision_weights,
    write_language,
    write_vision,
)

PROJECTOR = "mm_projector.bin"
BESIDE_ADAPTER = "non_lora_trainables.bin"  # all that was trained beside the adapter
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BASES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
NOT_OF_THE_LANGUAGE_MODEL = (
    "mm_",
    "tune_mm_",
    "unfreeze_mm_",
    "freeze_mm_",
    "image_",
    "use_mm_",
    "tokenizer_",
    "model_type",
    "architectures",
    "_name",
)

# The words in a folder's name by which LLaVA's own scripts choose the conversation mode (llava/eval/run_llava.py), in their order; where these take
# `llava_v1`, its evaluation scripts and its training take `vicuna_v1`.
MODES = {"llama-2": "llava-llama-2", "mistral": "llava-mistral-instruct", "v1.6-34b": "llava-chatml-direct", "v1": "vicuna-v1"}


def import_llava(path: Path, out: Path, sources: Sources, *, template: str = "", fast: bool = False) -> Imported:
    """Write a checkpoint of LLaVA as one of ours.

    Args:
        path: The folder.
        out: Folder to write; must not exist.
        sources: What the folder does not hold.
        template: Chat template, unless the user names another; empty to choose as LLaVA's scripts do.
        fast: If it was trained with the rules in `tokenizer.json`, which LLaVA's own code does not read (`use_fast=False`).

    Raises:
        CheckpointError: If the folder is of another model, its weights are not whole, or it needs what ours cannot do.
    """
    values = _read(path)
    whole = any((path / name).is_file() for name in WHOLE)
    adapted = (path / SETTING).is_file()
    tensors = Tensors(_read_tensors(path, whole=whole, adapted=adapted), path)
    notes: list[str] = []
    adapter, lora = {}, LoRAConfig()
    with new_folder(out) as folder:
        connector, state = _connector(tensors, values, path)
        vision = _vision(tensors, values, sources, folder / VISION_FOLDER, path)
        if adapted:
            language, adapter, lora = _adapted_language(values, sources, folder, path)
        else:
            language = _language(tensors, values, sources, folder, path, fast=fast) if whole else _published_language(values, sources, folder, path)
        tensors.finish()
        chosen = check_template(sources.template) if sources.template else template or _mode(path, values, notes, asked=whole or adapted)
        config = VisionLanguageConfig(
            name=folder_word(path.name),
            connector=connector,
            feature_layer=int(values.get("mm_vision_select_layer", -2)),
            resize="pad" if values.get("image_aspect_ratio") == "pad" else "crop",
            template=chosen,
            lora=LoRATowers(language=lora),
            **vision,
            **language,
        )
        finish(folder, config, state, adapter, origin=path)
    return Imported(out, config, tuple(notes))


def _read(path: Path) -> dict[str, Any]:
    """The config, refused if it is of a model that ours cannot be."""
    values = read_json(path / "config.json")
    kind = values.get("model_type")
    if "mm_vision_tower" not in values and "mm_projector_type" not in values:
        hint = "Try `vlm import hf`." if "vision_config" in values else "Name the folder of a LLaVA."
        raise CheckpointError(f"{path / 'config.json'} says no mm_vision_tower: it is not of a LLaVA in its own layout. {hint}")
    if kind not in BASES and kind not in BASES.values():
        raise CheckpointError(f"{path} has a language model of type {kind!r}; known: {', '.join(BASES)}.")
    if str(values.get("image_aspect_ratio", "")).startswith("anyres"):
        raise CheckpointError(f"{path} cuts pictures into tiles of several resolutions (image_aspect_ratio anyres); that is not supported.")
    if values.get("mm_use_im_start_end"):
        raise CheckpointError(f"{path} puts <im_start> and <im_end> around pictures (mm_use_im_start_end); that is not supported.")
    return values


def _read_tensors(path: Path, *, whole: bool, adapted: bool) -> dict[str, Tensor]:
    if adapted and whole:
        raise CheckpointError(f"{path} holds whole weights and an adapter; which of them count is not known. Move {SETTING} away, or the weights.")
    if adapted and not (path / BESIDE_ADAPTER).is_file():
        raise CheckpointError(f"{path} has an adapter but no {BESIDE_ADAPTER}, in which LLaVA puts the projector at the end of training.")
    tensors = read_folder(path) if whole else read_pickle(path / (BESIDE_ADAPTER if adapted else PROJECTOR))
    tensors = {re.sub(r"^base_model\.(model\.(?=model\.|lm_head\.))?", "", name): tensor for name, tensor in tensors.items()}
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": tensor for name, tensor in tensors.items()}


def _connector(tensors: Tensors, values: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Tensor]]:
    kind = str(values.get("mm_projector_type", "linear"))
    layers = tensors.take("model.mm_projector.")
    if kind == "identity":
        return "identity", layers
    depth = "1" if kind == "linear" else kind.removeprefix("mlp").removesuffix("x_gelu")
    if not depth.isdigit():
        raise CheckpointError(f"{path} has a projector of type {kind!r}; known: linear, mlp<number>x_gelu, identity.")
    if not layers:
        raise CheckpointError(f"{path} lacks the tensors of its projector (model.mm_projector). Name a folder with {PROJECTOR} or whole weights.")
    name, state = sequential(layers, origin=path)
    own = sum(key.endswith("weight") for key in state)
    if own != int(depth):
        raise CheckpointError(f"{path} has a projector of {own} layers, but its config.json says {kind}.")
    return name, state


def _vision(tensors: Tensors, values: Mapping[str, Any], sources: Sources, folder: Path, path: Path) -> dict[str, Any]:
    """Write the vision backbone if the checkpoint holds it, else name the published one."""
    source = str(values.get("mm_vision_tower") or values.get("vision_tower") or "")
    first = values.get("mm_vision_select_feature", "patch") == "patch"
    weights = tensors.take("model.vision_tower.vision_tower.")
    if not weights:
        return frozen_vision(source, sources, folder, drops_first=first)
    place = sources.vision or (source if Path(source).is_dir() else published_vision(source).source)
    config = vision_config(place)
    drop_tokens(config, first=first)
    processor = image_processor(path) or image_processor(Path(place))
    write_vision(vision_weights(weights, config), config, statistics_from(processor, config.model_type), folder, origin=path)
    return {"vision": INSIDE_VISION}


def _language(tensors: Tensors, values: Mapping[str, Any], sources: Sources, folder: Path, path: Path, *, fast: bool = False) -> dict[str, Any]:
    import transformers

    weights = tensors.take("model.", to="model.") | tensors.take("lm_head.", to="lm_head.")
    table = weights.get("model.embed_tokens.weight")
    if table is None:
        raise CheckpointError(f"{path} lacks model.embed_tokens.weight of its language model. It is not whole; copy it again.")
    own = {key: value for key, value in values.items() if not key.startswith(NOT_OF_THE_LANGUAGE_MODEL)}
    kind = str(values["model_type"])
    with one_line(str(path / "config.json")):
        config = transformers.AutoConfig.for_model(BASES.get(kind, kind), **(own | {"vocab_size": len(table)}))
    place = sources.tokenizer or str(path)
    tokenizer = read_tokenizer(place, as_written=fast)
    if getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", "never") != "never":
        _tokenize_as_llava(tokenizer, legacy=not fast and _is_silently_legacy(Path(place)))
    write_language(weights, config, tokenizer, folder / LANGUAGE_FOLDER, origin=path)
    return {"language": INSIDE_LANGUAGE}


def _is_silently_legacy(folder: Path) -> bool:
    """If Llama's tokenizer has files of transformers 4 that do not speak of `legacy`: it is true there, and false in transformers 5."""
    config, rules = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not config.is_file() or "legacy" in read_json(config):
        return False
    return not rules.is_file() or not read_json(rules).get("pre_tokenizer")


def _tokenize_as_llava(tokenizer: Any, *, legacy: bool) -> None:
    """Let Llama's tokenizer put a space behind pictures: LLaVA tokenizes the texts between them one by one (`tokenizer_image_token`).

    Each of them begins with a space more than it has, unless it begins with a special token.

    Args:
        tokenizer: The tokenizer, which is changed.
        legacy: Put a space behind special tokens as well.
    """
    from tokenizers import AddedToken, Regex, normalizers

    own = tokenizer.backend_tokenizer
    if legacy:
        own.pre_tokenizer.prepend_scheme = "always"
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE_PLACEHOLDER, normalized=True, special=True)]})
    special = "|".join(map(re.escape, tokenizer.all_special_tokens))
    space = normalizers.Replace(Regex(rf"(?<={IMAGE_PLACEHOLDER})(?!{special})(?=[\s\S])"), " ")
    own.normalizer = normalizers.Sequence([own.normalizer, space] if own.normalizer else [space])


def _published_language(values: Mapping[str, Any], sources: Sources, folder: Path, path: Path) -> dict[str, Any]:
    """The language model that a projector was trained beside, from the source that its config or the user names."""
    name, sources = _published(sources.language or str(values.get("_name_or_path", "")), sources, path)
    return frozen_language(name, sources, folder)


def _adapted_language(values: Mapping[str, Any], sources: Sources, folder: Path, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], LoRAConfig]:
    """Fields of the config for the base, the adapter's weights by our names, and its setting."""
    setting, weights = read_adapter(path)
    base = sources.language or str(setting.get("base_model_name_or_path") or values.get("_name_or_path", ""))
    if _is_llava(Path(base)):
        fields = _language_of(Path(base), sources, folder)
        config = language_config(str(folder / LANGUAGE_FOLDER))
    else:
        name, sources = _published(base, sources, path)
        fields = frozen_language(name, sources, folder)
        config = language_config(sources.language or str(LANGUAGE[name].source))
    lora = kept(weights, setting, config, origin=path)
    return fields, {f"model.{name}": tensor for name, tensor in in_memory(weights).items()}, lora


def _is_llava(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "mm_projector_type" in read_json(folder / "config.json")


def _language_of(base: Path, sources: Sources, folder: Path) -> dict[str, Any]:
    """Fields of the config for the language model of a LLaVA that was trained on."""
    tensors = Tensors(_read_tensors(base, whole=True, adapted=False), base)
    tensors.take("model.mm_projector.")
    tensors.take("model.vision_tower.")
    return _language(tensors, read_json(base / "config.json"), sources, folder, base)


def _published(source: str, sources: Sources, path: Path) -> tuple[str, Sources]:
    """The name of the language model that was trained beside, and the sources with its folder, if what the checkpoint names is one here.

    Raises:
        CheckpointError: If nothing is known by what it names, and the user names nothing.
    """
    is_here = bool(source) and Path(source).is_dir()
    word = source.rstrip("/").split("/")[-1].lower()
    names = [name for name, spec in LANGUAGE.items() if str(spec.source).split("/")[-1].lower() == word]
    if not source or not (names or sources.language or is_here):
        raise CheckpointError(
            f"{path} holds no language model, and names {source or 'none'}. Name it with --language-source: a folder or hub id; the folder of a LLaVA "
            "if an adapter was trained on one."
        )
    return names[0] if names else f"hf:{source}", replace(sources, language=source) if is_here else sources


def _mode(path: Path, values: Mapping[str, Any], notes: list[str], *, asked: bool) -> str:
    """The template of the conversation mode that LLaVA's scripts would choose; captions' alone where no language model was trained."""
    if not asked:
        return "plain"
    name = path.absolute().name.lower()
    name = f"{path.absolute().parent.name.lower()}_{name}" if name.startswith("checkpoint-") else name
    for word, template in MODES.items():
        if word in name:
            return template
    template = "llava-mistral-instruct" if "mistral" in str(values["model_type"]) else "vicuna-v1"
    notes.append(f"The name {path.name!r} does not tell the conversation mode, so prompts are those of {template}; --template names another.")
    return template

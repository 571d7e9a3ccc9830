"""xtuner's LLaVA (InternLM/xtuner, xtuner/model/llava.py) in its three layouts, told apart by their files.

Its own layout has the projector in `projector/`, what was trained of the vision backbone in `visual_encoder/` or, as an adapter, in
`visual_encoder_adapter/`, and the language model beside them or as an adapter in `llm_adapter/`. The other two are LLaVA's and transformers'.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import is_folder, read_json
from vlm.backbones.writing import new_folder
from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.errors import CheckpointError, ConfigError
from vlm.models.foreign.adapters import in_memory, kept, merged, read_adapter
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
from vlm.models.foreign.huggingface import ACTIVATIONS, import_huggingface
from vlm.models.foreign.llava import import_llava
from vlm.models.foreign.tensors import Tensors, read_folder
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

TEMPLATES = ("llama-3", "xtuner-phi-3")  # by their end tokens
DEFAULT_VISION = "openai/clip-vit-large-patch14-336"  # of every LLaVA that xtuner has published
DEFAULT_DEPTH = 2  # ProjectorConfig of xtuner


def import_xtuner(path: Path, out: Path, sources: Sources) -> Imported:
    """Write a checkpoint of xtuner, in any of its layouts, as one of ours.

    Args:
        path: The folder.
        out: Folder to write; must not exist.
        sources: What the folder does not hold; its own layout holds what was trained alone, and names no frozen language model.

    Raises:
        CheckpointError: If the folder is of none of the layouts, or its weights are not whole.
        ConfigError: If no chat template is known for its tokenizer.
    """
    if (path / "projector").is_dir():
        return _import_own(path, out, sources)
    values = read_json(path / "config.json")
    if "vision_config" in values:
        return import_huggingface(path, out, sources, templates=TEMPLATES)
    if "mm_projector_type" in values:
        template = "" if sources.template else _template(read_tokenizer(sources.tokenizer or str(path)), path)
        return import_llava(path, out, sources, template=template, fast=True)
    raise CheckpointError(f"{path} has neither a projector/ nor a config.json with vision_config or mm_projector_type: it is no LLaVA of xtuner.")


def _import_own(path: Path, out: Path, sources: Sources) -> Imported:
    with new_folder(out) as folder:
        connector, state = _connector(path / "projector")
        vision = _vision(path, sources, folder / VISION_FOLDER)
        language, tokenizer, adapter, lora = _language(path, sources, folder)
        config = VisionLanguageConfig(
            name=folder_word(path.name),
            connector=connector,
            feature_layer=-2,  # visual_select_layer of all of its configs; no checkpoint says it
            resize="pad",
            template=check_template(sources.template) if sources.template else _template(tokenizer, path),
            lora=LoRATowers(language=lora),
            **vision,
            **language,
        )
        finish(folder, config, state, adapter, origin=path)
    return Imported(out, config)


def _template(tokenizer: Any, path: Path) -> str:
    from vlm.backbones.language.chat_templates import find_template

    vocabulary = tokenizer.get_vocab()
    for name in TEMPLATES:
        if all(token in vocabulary for token in find_template(name).stop):
            return name
    raise ConfigError(
        f"The tokenizer of {path} is of neither Llama 3 nor Phi-3. Name the template that it was trained with: --template (`vlm list templates`)."
    )


def _connector(folder: Path) -> tuple[str, dict[str, Tensor]]:
    values = read_json(folder / "config.json")
    act = values.get("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise CheckpointError(f"{folder} has a connector with activation {act!r}; known: {', '.join(ACTIVATIONS)}.")
    tensors = Tensors(read_folder(folder), folder)
    name, state = sequential(tensors.take("model."), origin=folder, activation=ACTIVATIONS[act], bias=values.get("bias", True))
    tensors.finish()
    depth, own = values.get("depth", DEFAULT_DEPTH), sum(key.endswith("weight") for key in state)
    if own != depth:
        raise CheckpointError(f"{folder} has a projector of {own} layers, but its config.json says {depth}. Copy both files again.")
    return name, state


def _vision(path: Path, sources: Sources, folder: Path) -> dict[str, Any]:
    own, adapter = path / "visual_encoder", path / "visual_encoder_adapter"
    if own.is_dir():
        _write(vision_config(str(own)), read_folder(own), image_processor(own), folder, own)
        return {"vision": INSIDE_VISION}
    if not adapter.is_dir():
        return frozen_vision(DEFAULT_VISION, sources, folder, drops_first=True)
    setting, weights = read_adapter(adapter)
    base = sources.vision or str(setting.get("base_model_name_or_path") or DEFAULT_VISION)
    if not sources.vision and not is_folder(base):
        base = published_vision(base).source
    tensors = merged(_published(base), weights, setting, origin=adapter)
    _write(vision_config(base), tensors, image_processor(Path(base)), folder, adapter)
    return {"vision": INSIDE_VISION}


def _published(source: str) -> dict[str, Tensor]:
    """The vision backbone of a folder or hub id, whether it lies there alone or beside a text tower."""
    return {
        name.removeprefix("vision_model."): tensor
        for name, tensor in read_folder(source).items()
        if not name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))
    }


def _write(config: Any, tensors: Mapping[str, Tensor], processor: Mapping[str, Any], folder: Path, origin: Path) -> None:
    drop_tokens(config, first=True)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    write_vision(vision_weights(tensors, config), config, statistics_from(processor, config.model_type), folder, origin=origin)


def _language(path: Path, sources: Sources, folder: Path) -> tuple[dict[str, Any], Any, dict[str, Tensor], LoRAConfig]:
    """Fields of the config, the tokenizer, the adapter by our names, and its setting."""
    adapter = path / "llm_adapter"
    if not adapter.is_dir() and (path / "config.json").is_file():
        tensors = read_folder(path)
        tokenizer = read_tokenizer(sources.tokenizer or str(path), as_written=True)
        rows = len(tensors["model.embed_tokens.weight"]) if "model.embed_tokens.weight" in tensors else 0
        write_language(Tensors(tensors, path).take(""), language_config(str(path), rows), tokenizer, folder / LANGUAGE_FOLDER, origin=path)
        return {"language": INSIDE_LANGUAGE}, tokenizer, {}, LoRAConfig()
    setting, weights = read_adapter(adapter) if adapter.is_dir() else ({}, {})
    source = sources.language or str(setting.get("base_model_name_or_path") or "")
    if not source:
        raise CheckpointError(f"{path} holds no language model and names none, because it was frozen. Name it with --language-source.")
    names = [name for name, spec in LANGUAGE.items() if str(spec.source).lower() == source.lower()]
    fields = frozen_language(names[0] if names else f"hf:{source}", sources, folder)
    tokenizer = read_tokenizer(sources.tokenizer or source)
    if not weights:
        return fields, tokenizer, {}, LoRAConfig()
    lora = kept(weights, setting, language_config(source), origin=adapter)
    return fields, tokenizer, {f"model.{name}": tensor for name, tensor in in_memory(weights).items()}, lora

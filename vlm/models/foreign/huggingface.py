"""transformers' LLaVA (`LlavaForConditionalGeneration`) as a checkpoint of ours; old and new spellings of its names.

The prompt is that of its own chat template, where one of ours writes the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.language.chat_templates import TEMPLATES, fit_template
from vlm.backbones.loading import read_json
from vlm.backbones.writing import new_folder
from vlm.conf.schema import VisionLanguageConfig
from vlm.errors import CheckpointError, ConfigError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message
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
    sequential,
)
from vlm.models.foreign.tensors import Tensors, one_line, read_folder
from vlm.models.foreign.towers import (
    drop_tokens,
    image_processor,
    read_tokenizer,
    statistics_from,
    vision_weights,
    write_language,
    write_vision,
)

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu-tanh", "gelu_new": "gelu-tanh", "relu": "relu", "silu": "silu"}
QUESTION = "What is this?"
TILED = ("LlavaNextForConditionalGeneration", "LlavaOnevisionForConditionalGeneration")


def import_huggingface(path: Path, out: Path, sources: Sources, *, templates: Sequence[str] = ()) -> Imported:
    """Write a folder of transformers' LLaVA as a checkpoint of ours.

    Args:
        path: The folder.
        out: Folder to write; must not exist.
        sources: Tokenizer and chat template, if those of the folder are not to be taken.
        templates: Templates to choose from where the folder has none: the first whose tokens the tokenizer has.

    Raises:
        CheckpointError: If the folder is of another model, or its weights are not whole.
        ConfigError: If no chat template is known for it.
    """
    config = _read(path)
    tensors = Tensors({_own_spelling(name): tensor for name, tensor in read_folder(path).items()}, path)
    tokenizer = read_tokenizer(sources.tokenizer or str(path))
    template = check_template(sources.template) if sources.template else template_of(path, tokenizer, templates)
    with new_folder(out) as folder:
        connector, state = _connector(tensors, config, path)
        processor = image_processor(path)
        _write_vision(tensors, config, processor, folder / VISION_FOLDER, path)
        _write_language(tensors, config, tokenizer, folder / LANGUAGE_FOLDER, path)
        tensors.finish()
        ours = VisionLanguageConfig(
            name=folder_word(path.name),
            vision=INSIDE_VISION,
            language=INSIDE_LANGUAGE,
            connector=connector,
            feature_layer=config.vision_feature_layer,
            resize=resize_of(processor, config.vision_config.model_type),  # type: ignore[arg-type]
            template=template,
        )
        finish(folder, ours, state, origin=path)
    return Imported(out, ours)


def _read(path: Path) -> Any:
    """transformers' config, refused if it is of a model that ours cannot be."""
    import transformers

    values = read_json(path / "config.json")
    architecture = next(iter(values.get("architectures") or ()), "")
    if architecture in TILED or values.get("model_type") == "llava_next":
        raise CheckpointError(
            f"{path} is a {architecture or 'LLaVA-NeXT'}, which cuts pictures into tiles of several resolutions; that is not supported."
        )
    if values.get("model_type") != "llava" or "vision_config" not in values:
        kind = values.get("model_type", "unknown")
        hint = "Try `vlm import llava`." if "mm_projector_type" in values or "mm_vision_tower" in values else "Name a folder that transformers saved."
        raise CheckpointError(f"{path} is of type {kind!r} in a layout that is not that of LlavaForConditionalGeneration. {hint}")
    with one_line(str(path / "config.json")):
        config = transformers.LlavaConfig.from_dict(values)
    if not isinstance(config.vision_feature_layer, int):
        raise CheckpointError(f"{path} joins features of the layers {config.vision_feature_layer}; one layer is supported.")
    if config.projector_hidden_act not in ACTIVATIONS:
        raise CheckpointError(f"{path} has a connector with activation {config.projector_hidden_act!r}; known: {', '.join(ACTIVATIONS)}.")
    return config


def _own_spelling(name: str) -> str:
    """`vision.`, `connector.` or `language.` and the tower's own name, from any of the three spellings of transformers."""
    for theirs, ours in (
        ("model.language_model.", "language.model."),
        ("language_model.", "language."),
        ("lm_head.", "language.lm_head."),
        ("model.multi_modal_projector.", "connector."),
        ("multi_modal_projector.", "connector."),
        ("model.vision_tower.", "vision."),
        ("vision_tower.", "vision."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _connector(tensors: Tensors, config: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    layers = tensors.take("connector.linear_1.", to="0.") | tensors.take("connector.linear_2.", to="2.")
    return sequential(layers, origin=path, activation=ACTIVATIONS[config.projector_hidden_act], bias=config.multimodal_projector_bias)


def _write_vision(tensors: Tensors, config: Any, processor: Mapping[str, Any], folder: Path, path: Path) -> None:
    tower = config.vision_config
    drop_tokens(tower, first=config.vision_feature_select_strategy == "default")
    weights = vision_weights(tensors.take("vision."), tower)
    write_vision(weights, tower, statistics_from(processor, tower.model_type), folder, origin=path)


def _write_language(tensors: Tensors, config: Any, tokenizer: Any, folder: Path, path: Path) -> None:
    text, weights = config.text_config, tensors.take("language.")
    table = weights.get("model.embed_tokens.weight")
    if table is None:
        raise CheckpointError(f"{path} lacks the embeddings of its language model. It is not whole; copy it again.")
    text.vocab_size = len(table)
    text.tie_word_embeddings = "lm_head.weight" not in weights and bool(config.tie_word_embeddings or text.tie_word_embeddings)
    if text.model_type == "phi" and "lm_head.bias" not in weights:
        weights["lm_head.bias"] = torch.zeros(len(table), dtype=table.dtype)  # transformers' LLaVA has a head without
    write_language(weights, text, tokenizer, folder, origin=path)


def resize_of(processor: Mapping[str, Any], model_type: str) -> str:
    """How an image processor makes pictures square."""
    if processor.get("do_pad"):
        return "pad"
    return "crop" if processor.get("do_center_crop", model_type == "clip_vision_model") else "squash"


def template_of(path: Path, tokenizer: Any, choices: Sequence[str]) -> str:
    """The template of ours that writes a question about a picture as the folder's own chat template does.

    Raises:
        ConfigError: If there is no chat template and none of the choices fits, or none of ours writes the same.
    """
    jinja = _jinja(path, tokenizer)
    if jinja is None:
        fitting = [name for name in choices if all(token in tokenizer.get_vocab() for token in TEMPLATES[name].stop)]
        if not fitting:
            raise ConfigError(f"{path} has no chat template. Name the one that it was trained with: --template (`vlm list templates`).")
        return fitting[0]
    theirs = _asked(jinja, tokenizer)
    matching = [name for name, template in TEMPLATES.items() if _prompt(template, tokenizer) in theirs]
    if not matching:
        raise ConfigError(f"The chat template of {path} writes {min(theirs, key=len)!r}, as none of ours does. Name the nearest with --template.")
    return matching[0]


def _jinja(path: Path, tokenizer: Any) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (path / name).is_file() and isinstance(text := read_json(path / name).get("chat_template"), str):
            return text
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


def _asked(jinja: str, tokenizer: Any) -> set[str]:
    """The question as the chat template writes it, content as parts and as a string, without BOS."""
    from jinja2 import TemplateError

    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    written = set()
    for content in (parts, f"{IMAGE_PLACEHOLDER}\n{QUESTION}"):
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=jinja, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError):
            continue
        written.add(_bare(text, tokenizer))
    return written


def _prompt(template: ChatTemplate, tokenizer: Any) -> str | None:
    try:
        fitted = fit_template(template, tokenizer)
    except ConfigError:
        return None
    if template.image_place != "text":
        return None
    return _bare("".join(span.text for span in fitted.render([Message("user", f"{IMAGE_PLACEHOLDER}\n{QUESTION}")])), tokenizer)


def _bare(text: str, tokenizer: Any) -> str:
    return text.removeprefix(tokenizer.bos_token or "").rstrip(" ")

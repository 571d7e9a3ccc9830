"""Run folders of Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865) and of its Phi-2 and Phi-3 forks with LoRA, as checkpoints of ours.

A run holds `config.json`, of which `model` matters, and `checkpoints/latest-checkpoint.pt` with the trained modules: projector, then language model,
then vision backbone, as the stage had it. Pictures go behind the first token; see `vlm.backbones.language.foreign_templates`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import Load, is_folder, read_json
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.writing import new_folder
from vlm.conf.schema import LoRAConfig, LoRATowers, VisionLanguageConfig
from vlm.errors import CheckpointError, ConfigError, UnknownNameError
from vlm.models.foreign.adapters import setting_of
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
    sequential,
)
from vlm.models.foreign.tensors import Tensors, read_folder, read_pickle
from vlm.models.foreign.timm_names import Tower, described, from_timm, resized
from vlm.models.foreign.towers import language_config, read_tokenizer, split_adapter, statistics_of, write_fused, write_language, write_vision

LATEST = "latest-checkpoint.pt"
NEEDED = ("model_id", "vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy")
MODULES = ("vision_backbone", "projector", "llm_backbone")
BESIDE = {"vision": "towers", "language": "llm", "tokenizer": "tokenizer"}  # where a run that was archived whole has its sources
RESIZE = {"resize-naive": "squash", "resize-crop": "crop-even", "letterbox": "letterbox"}
LAYERS = {"linear": 1, "gelu-mlp": 2, "fused-gelu-mlp": 3}  # of the projector
HALF_NAMES = {"dinov2": "dino", "siglip": "siglip", "clip": "clip"}  # of the towers of a fused backbone


@dataclass(frozen=True)
class Prompts:
    """How the models on one language model were trained and asked.

    Attributes:
        trained: Template of the turns as they were tokenized in training.
        asked: Template of the prompt that the original code writes at inference, where it has other tokens.
        caption: Template of the align stage.
        pad: Token that the original adds for padding; empty if the end token is taken.
        alpha: LoRA's alpha, which no checkpoint says; 0 without an adapter.
        dropout: LoRA's dropout in training.
    """

    trained: str
    asked: str = ""
    caption: str = "prism-caption"
    pad: str = "<PAD>"
    alpha: float = 0.0
    dropout: float = 0.0


PURE, CHAT, VICUNA = Prompts("prism-pure"), Prompts("prism-llama-2-chat"), Prompts("prism-vicuna")
PROMPTS = {
    "llama2-7b-pure": PURE,
    "llama2-13b-pure": PURE,
    "llama2-7b-chat": CHAT,
    "llama2-13b-chat": CHAT,
    "vicuna-v15-7b": VICUNA,
    "vicuna-v15-13b": VICUNA,
    "mistral-v0.1-7b-pure": PURE,
    "mistral-v0.1-7b-instruct": Prompts("prism-mistral-instruct"),
    "phi-2-3b": Prompts("prism-phi-2", "prism-phi-2-asked", pad="<|pad|>"),
    "phi2_base": Prompts("prism-lora-phi-2", "prism-lora-phi-2-asked", "prism-lora-caption", pad="", alpha=16.0, dropout=0.05),
    "phi3_base": Prompts("prism-lora-phi-3", "prism-lora-phi-3-asked", "prism-lora-caption", pad="", alpha=256.0, dropout=0.05),
}


def import_prismatic(path: Path, out: Path, sources: Sources, *, asked: bool = False, lora_alpha: float | None = None) -> Imported:
    """Write a run of Prismatic or of a fork as a checkpoint of ours.

    Args:
        path: The run folder, or one of its `.pt` files.
        out: Folder to write; must not exist.
        sources: What is not in the run: the frozen vision backbone, the base language model's config and tokenizer; the registry's where empty.
        asked: Prompts as the original code writes them at inference, not as the model was trained.
        lora_alpha: The adapter's alpha; None for the fork's own.

    Raises:
        CheckpointError: If the run is not whole, or towers do not fit.
        ConfigError: If alpha is given and there is no adapter.
        UnknownNameError: If the run names a part that is unknown.
    """
    weights = path if path.is_file() else path / "checkpoints" / LATEST
    run = weights.parent.parent if path.is_file() else path
    model = _model_values(run)
    sources, found = _with_those_beside(run, sources)
    modules = _read_modules(weights)
    prompts = _known("language model of Prismatic", model["llm_backbone_id"], PROMPTS)
    with new_folder(out) as folder:
        vision = _vision(modules, model, sources, folder / VISION_FOLDER)
        language, adapters, lora = _language(modules, model, prompts, sources, folder, weights, lora_alpha)
        connector, state = _projector(modules, model, weights)
        for tensors in modules.values():
            tensors.finish()
        template = prompts.trained if "llm_backbone" in modules else prompts.caption
        if asked and prompts.asked and "llm_backbone" in modules:
            template = prompts.asked
        config = VisionLanguageConfig(
            name=folder_word(str(model["model_id"])),
            connector=connector,
            resize=_known("image_resize_strategy of Prismatic", model["image_resize_strategy"], RESIZE),  # type: ignore[arg-type]
            template=check_template(sources.template) if sources.template else template,
            lora=LoRATowers(language=lora),
            **vision,
            **language,
        )
        finish(folder, config, state, adapters, origin=weights)
    notes = _notes(config, prompts, model, own_alpha=lora_alpha is None and lora.rank > 0, asked=asked)
    return Imported(out, config, (*found, *notes))


def _with_those_beside(run: Path, sources: Sources) -> tuple[Sources, tuple[str, ...]]:
    """The sources, those that the user does not name out of the run folder if they lie there; and a note that says so."""
    own = {name: str(run / folder) for name, folder in BESIDE.items() if not getattr(sources, name) and (run / folder).is_dir()}
    note = f"Sources that lie in the run folder: {', '.join(f'--{name}-source {place}' for name, place in own.items())}."
    return replace(sources, **own), (note,) if own else ()


def _notes(config: VisionLanguageConfig, prompts: Prompts, model: Mapping[str, Any], *, own_alpha: bool, asked: bool) -> tuple[str, ...]:
    notes = []
    if asked and config.template != prompts.asked:
        notes.append(f"--prompt original changes nothing with the template {config.template}.")
    if own_alpha:
        lora = config.lora.language
        notes.append(
            f"The checkpoint does not say the adapter's alpha: {lora.alpha:g} is the fork's, the rank is {lora.rank}; --lora-alpha names another."
        )
    if prompts.asked and config.template == prompts.trained:
        notes.append("It is asked as it was trained, with a blank token before the answer; the original code asks without (--prompt original).")
    if model["image_resize_strategy"] == "letterbox" and "-vit-so" in str(model["vision_backbone_id"]) and "dino" in str(model["vision_backbone_id"]):
        notes.append("Pictures are padded with the first tower's mean color; the original pads with a color for each tower.")
    return tuple(notes)


def _model_values(run: Path) -> dict[str, Any]:
    values = read_json(run / "config.json").get("model")
    missing = [key for key in NEEDED if not isinstance(values, dict) or key not in values]
    if not isinstance(values, dict) or missing:
        raise CheckpointError(f"{run / 'config.json'} does not say model.{missing[0]}: it is not that of a run of Prismatic. Name its run folder.")
    return values


def _known(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise UnknownNameError(kind, name, table)
    return table[name]


def _read_modules(path: Path) -> dict[str, Tensors]:
    """The trained modules."""
    if path.parent.is_dir() and not path.is_file():
        others = ", ".join(sorted(file.name for file in path.parent.glob("*.pt"))) or "none"
        raise CheckpointError(
            f"There is no {path}; checkpoints there: {others}. Name one of these files, or the folder of a run that has been saved."
        )
    values = read_pickle(path)
    modules = values.get("model") if isinstance(values, dict) else None
    if not isinstance(modules, dict) or "projector" not in modules or not all(isinstance(state, dict) for state in modules.values()):
        raise CheckpointError(f"{path} holds no `model` with a `projector`: it is not a checkpoint of Prismatic. Name its run folder.")
    if unknown := sorted(set(modules) - set(MODULES)):
        raise CheckpointError(f"{path} holds the modules {', '.join(unknown)}, which are not Prismatic's ({', '.join(MODULES)}).")
    return {name: Tensors(state, path) for name, state in modules.items()}


def _projector(modules: Mapping[str, Tensors], model: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Tensor]]:
    name, state = sequential(modules["projector"].take("projector."), origin=path)
    specifier = str(model["arch_specifier"]).removeprefix("no-align+")
    layers = _known("arch_specifier of Prismatic", specifier, LAYERS)
    own = sum(key.endswith("weight") for key in state)
    if own != layers:
        raise CheckpointError(f"{path} has a projector of {own} layers, but its config.json says {specifier}, which has {layers}.")
    return name, state


def _language(
    modules: Mapping[str, Tensors],
    model: Mapping[str, Any],
    prompts: Prompts,
    sources: Sources,
    folder: Path,
    origin: Path,
    lora_alpha: float | None,
) -> tuple[dict[str, Any], dict[str, Tensor], LoRAConfig]:
    """Fields of the config, the adapter's weights by our names, and its setting."""
    name = str(model["llm_backbone_id"])
    if "llm_backbone" not in modules:
        return frozen_language(name, sources, folder), {}, _adapter_setting({}, None, lora_alpha, prompts, origin)
    tensors = modules["llm_backbone"]
    whole = tensors.take("llm.base_model.model.") or tensors.take("llm.")
    own, adapter = split_adapter(whole)
    table = own.get("model.embed_tokens.weight")
    if table is None:
        raise CheckpointError(f"{origin} lacks llm.model.embed_tokens.weight of the language model. It is not whole; copy it again.")
    spec = LANGUAGE[name]
    source = sources.language or str(spec.source)
    tokenizer = read_tokenizer(sources.tokenizer or source)
    if prompts.pad:
        tokenizer.add_special_tokens({"pad_token": prompts.pad})
    config = language_config(source, len(table))
    write_language(own, config, tokenizer, folder / LANGUAGE_FOLDER, origin=origin)
    lora = _adapter_setting(adapter, config, lora_alpha, prompts, origin)
    return {"language": INSIDE_LANGUAGE}, {f"model.{key}": tensor for key, tensor in adapter.items()}, lora


def _adapter_setting(adapter: Mapping[str, Tensor], config: Any, alpha: float | None, prompts: Prompts, origin: Path) -> LoRAConfig:
    if not adapter:
        if alpha is not None:
            raise ConfigError(f"--lora-alpha is {alpha:g}, but {origin} has no LoRA adapter. Leave it out.")
        return LoRAConfig()
    if alpha is None and not prompts.alpha:
        raise CheckpointError(f"{origin} has a LoRA adapter, whose alpha no checkpoint says. Give it with --lora-alpha.")
    return setting_of(adapter, config, alpha=prompts.alpha if alpha is None else alpha, dropout=prompts.dropout, origin=origin)


def _vision(modules: Mapping[str, Tensors], model: Mapping[str, Any], sources: Sources, folder: Path) -> dict[str, Any]:
    """Write the vision backbone, and name it: the trained one of the run, or the frozen one of the source."""
    name = str(model["vision_backbone_id"])
    spec = VISION[name]
    trained = modules.get("vision_backbone")
    names = [VISION.resolve(part) for part in spec.parts] or [VISION.resolve(name)]
    for part in names:
        family = part.split("-")[0]
        if family not in HALF_NAMES:
            if trained or sources.vision:
                raise CheckpointError(f"The vision backbone {name!r} is imported as published alone, neither trained nor from a --vision-source.")
            return {"vision": VISION.resolve(name)}
        tower = _tower_of(part, family, fused=bool(spec.parts))
        half = HALF_NAMES[family] if spec.parts else ""
        featurizer = f"{half}_featurizer." if half else "featurizer."
        weights = trained.take(featurizer) if trained else None
        place = folder / half if half else folder
        _write_tower(weights, tower, VISION[part], sources.vision, half, place, origin=modules["projector"].origin)
    if spec.parts:
        write_fused(folder, [HALF_NAMES[part.split("-")[0]] for part in names])
    return {"vision": INSIDE_VISION}


def _tower_of(part: str, family: str, *, fused: bool) -> Tower:
    """What timm's tower of that name is. In the original, CLIP's own activation is set where it is alone."""
    spec = VISION[part]
    return Tower(
        family=family,
        num_heads=spec.architecture["num_attention_heads"],
        act="quick_gelu" if family == "clip" and not fused else "gelu",
        image_size=spec.image_size,
        epsilon=1e-5 if family == "clip" else 1e-6,
        resizes=family == "dinov2",
    )


def _write_tower(trained: Mapping[str, Tensor] | None, tower: Tower, spec: VisionSpec, source: str, half: str, folder: Path, *, origin: Path) -> None:
    """One tower as a folder.

    Args:
        trained: timm's weights out of the checkpoint; None where the tower was frozen.
        tower: What the weights do not say.
        spec: The registry's entry.
        source: What the user names; empty for the registry's source.
        half: Which tower of a fused one; empty for a single one.
        folder: The folder to write.
        origin: The checkpoint, for messages.
    """
    file, description = _timm_files(Path(source), half) if source and (Path(source).is_file() or is_folder(source)) else (None, {})
    statistics = statistics_of(spec) | {f"image_{key}": list(description[key]) for key in ("mean", "std") if key in description}
    if trained is not None:
        tensors, config = from_timm(trained, replace(described(tower, description, origin=source), resizes=False), origin=origin)
    elif file is not None:
        tensors, config = from_timm(_read_timm(file), described(tower, description, origin=source), origin=file)
        origin = file
    else:
        own = VISION[f"hf:{Path(source) / half if half else source}"] if source else spec
        tensors, config = _from_transformers(own, tower)
        origin = Path(own.source)
    write_vision(tensors, config, statistics, folder, origin=origin)


def _read_timm(file: Path) -> dict[str, Tensor]:
    tensors = read_folder(file)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "fc_norm."))}  # a classifier


def _timm_files(source: Path, half: str) -> tuple[Path | None, dict[str, Any]]:
    """The weights in timm's layout that a source holds, and what a JSON file beside them says; None for a folder of transformers.

    A source is a file, a folder of timm's hub (`model.safetensors` and a `config.json` with `architecture`), or a folder with one file for a tower
    and its arguments in a JSON file of the same name; of a fused backbone, named `dino`, `siglip` or `clip`, or in subfolders of these names.
    """
    if source.is_file():
        return source, _arguments(source)
    if half and (source / half).is_dir():
        return _timm_files(source / half, "")
    config, named = source / "config.json", source / f"{half}.safetensors"
    if config.is_file() and not named.is_file():
        values = read_json(config)
        return (source / "model.safetensors", {}) if "architecture" in values else (None, {})
    files = sorted(source.glob(f"{half or '*'}.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(
            f"{source} should hold one tower's {half or '*'}.safetensors; found {found}. Name the file itself with --vision-source."
        )
    return files[0], _arguments(files[0])


def _arguments(file: Path) -> dict[str, Any]:
    beside = file.with_suffix(".json")
    return read_json(beside) if beside.is_file() else {}


def _from_transformers(spec: VisionSpec, tower: Tower) -> tuple[dict[str, Tensor], Any]:
    """The published tower with the activation and at the size that the original computed with."""
    module: Any = spec.build(spec, Load(spec.source))
    tensors, config = dict(module.model.state_dict()), module.model.config
    config.hidden_act = tower.act
    if tower.family == "dinov2":
        positions = tensors["embeddings.position_embeddings"]
        patches = resized(positions[:, 1:], tower.image_size // config.patch_size)
        tensors["embeddings.position_embeddings"] = torch.cat([positions[:, :1], patches], dim=1)
        config.image_size = tower.image_size
    return tensors, config

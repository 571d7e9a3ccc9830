"""What can be composed: every registered name with its facts, and what a part or a preset is made of, built without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.backbones.image import IMAGE
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import TEMPLATES
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora
from vlm.backbones.text import TEXT
from vlm.backbones.vision import VISION
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.overview import contrastive_row, contrastive_rows, families, is_large
from vlm.conf.presets import PRESETS
from vlm.conf.schema import VisionLanguageConfig
from vlm.connectors import CONNECTORS
from vlm.data.datasets import DATASETS
from vlm.errors import UnknownNameError
from vlm.models.build import ADAPTABLE, Composition, resolve
from vlm.models.dual_build import build_heads, resolve_dual
from vlm.registry import Registry
from vlm.verified import verifications

TREE_DEPTH = 3


def list_components(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """The registered names of one kind or of all, with what is known of each before any download.

    Raises:
        UnknownNameError: If there is no such kind.
    """
    if kind is not None and kind not in LISTERS:
        raise UnknownNameError("kind of component", kind, LISTERS)
    return {name: lister() for name, lister in LISTERS.items() if kind in (None, name)}


def _vision() -> list[dict[str, Any]]:
    def row(name: str, spec: Any) -> dict[str, Any]:
        sizes = {"pixels": spec.image_size, "patches": spec.num_patches, "width": spec.width, "parameters": spec.num_parameters}
        return {"name": name, **sizes, "source": _source(spec), "license": spec.license, **_ran("vision", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in VISION.items()]


def _language() -> list[dict[str, Any]]:
    def row(name: str, spec: Any) -> dict[str, Any]:
        template = spec.template.name if spec.template else ""
        sizes = {"context": spec.max_length, "width": spec.width, "parameters": spec.num_parameters, "template": template}
        return {"name": name, **sizes, "source": _source(spec), "license": spec.license, **_ran("language", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in LANGUAGE.items()]


def _image() -> list[dict[str, Any]]:
    def row(name: str, spec: Any) -> dict[str, Any]:
        sizes = {"pixels": spec.image_size, "resize": spec.image_policy.mode, "width": spec.width, "parameters": spec.num_parameters}
        return {"name": name, **sizes, "source": _source(spec), "license": spec.license, **_ran("image", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in IMAGE.items()]


def _text() -> list[dict[str, Any]]:
    def row(name: str, spec: Any) -> dict[str, Any]:
        sizes = {"tokens": spec.max_length, "width": spec.width, "parameters": spec.num_parameters}
        return {"name": name, **sizes, "source": _source(spec), "license": spec.license, **_ran("text", name), "aliases": list(spec.aliases)}

    return [row(name, spec) for name, spec in TEXT.items()]


def _connectors() -> list[dict[str, Any]]:
    return [{"name": name, "paper": spec.paper, "aliases": list(spec.aliases)} for name, spec in CONNECTORS.items()]


def _templates() -> list[dict[str, Any]]:
    return [{"name": name, "answer": template.assistant_start + template.assistant} for name, template in sorted(TEMPLATES.items())]


def _datasets() -> list[dict[str, Any]]:
    return [{"name": name, "license": spec.license, "description": spec.description} for name, spec in DATASETS.items()]


def _presets() -> list[dict[str, Any]]:
    def row(name: str, config: Any) -> dict[str, Any]:
        model = config.model
        parts = {"vision": model.vision, "connector": model.connector, "language": model.language}
        return {"name": name, **parts, "dataset": config.stage.dataset, "aliases": list(PRESETS.aliases_of(name))}

    contrastive = [
        {**contrastive_row(name, config), "aliases": list(CONTRASTIVE_PRESETS.aliases_of(name))} for name, config in CONTRASTIVE_PRESETS.items()
    ]
    return [*(row(name, config) for name, config in PRESETS.items()), *contrastive]


def _models() -> list[dict[str, Any]]:
    """The presets, a row for each model, without large families."""
    return [model.row() for models in families().values() if not is_large(models) for model in models]


LISTERS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "vision": _vision,
    "language": _language,
    "image": _image,
    "text": _text,
    "connectors": _connectors,
    "templates": _templates,
    "datasets": _datasets,
    "presets": _presets,
}


OPEN: dict[str, Registry[Any]] = {"vision": VISION, "language": LANGUAGE, "image": IMAGE, "text": TEXT, "connectors": CONNECTORS}


def open_names(kind: str) -> tuple[str, ...]:
    """Forms of the names that a kind of component answers to without listing them, such as `timm:<name>`."""
    return OPEN[kind].open_names if kind in OPEN else ()


def _source(spec: Any) -> str:
    """Where the weights come from; of entries without published ones, that they are random."""
    return str(spec.source or "random")


def _ran(kind: str, name: str) -> dict[str, str]:
    """The column that says whether an entry ever ran with its real weights."""
    record = verifications().get(f"{kind}/{name}")
    return {"ran_with_real_weights": record.date if record else "no"}


@dataclass(frozen=True)
class Inspection:
    """What a part or a composition is made of.

    Attributes:
        kind: vision, language, image, text, connector, dataset or preset.
        name: Its registered name.
        facts: What is known of it, label by label.
        tree: Module path, class and number of parameters, from the outside in; empty for a dataset.
    """

    kind: str
    name: str
    facts: dict[str, str]
    tree: list[tuple[str, str, int]]


def inspect(name: str) -> Inspection:
    """Build a part or a preset's composition on the meta device, at full size and without weights; of a dataset, its facts alone.

    An open name that several kinds answer to, such as `open-clip:<model>-image`, is told by its ending.

    Raises:
        UnknownNameError: If no registry has the name.
    """
    half = {"image": IMAGE, "text": TEXT}.get(name.rpartition("-")[2])
    for known, inspector in sorted(INSPECTORS, key=lambda entry: entry[0] is not half):
        if name in known:
            return inspector(known.resolve(name))
    raise UnknownNameError("part, dataset or preset", name, {name for known, _ in INSPECTORS for name in known})


def _inspect_vision(name: str) -> Inspection:
    spec = VISION[name]
    with torch.device("meta"):
        module = spec.build(spec, Load(source=None))
    facts = {"pixels": f"{spec.image_size} x {spec.image_size}", "tokens an image": f"{spec.num_patches} (one a patch)", "width": f"{spec.width}"}
    facts["LoRA targets"] = spec.lora_targets if isinstance(spec.lora_targets, str) else ", ".join(spec.lora_targets)
    return Inspection("vision", name, facts | _origin(spec), tree(module, "vision"))


def _inspect_language(name: str) -> Inspection:
    spec = LANGUAGE[name]
    with torch.device("meta"):
        module = spec.build(spec, Load(source=None))
    facts = {
        "context": f"{spec.max_length:,} tokens",
        "width": f"{spec.width}",
        "vocabulary": f"{spec.vocab_size:,}",
        "chat template": spec.template.name if spec.template else "state one with --model.template",
        "LoRA targets": spec.lora_targets if isinstance(spec.lora_targets, str) else ", ".join(spec.lora_targets),
    }
    return Inspection("language", name, facts | _origin(spec), tree(module, "language"))


def _inspect_image(name: str) -> Inspection:
    spec = IMAGE[name]
    with torch.device("meta"):
        module = spec.build(spec, Load(source=None))
    policy = spec.image_policy
    cut = f", short side to {policy.short_side}" if policy.short_side else ""
    facts = {"pixels": f"{policy.size} x {policy.size} ({policy.mode}{cut}, {policy.resample})", "vector": f"{spec.width}: {spec.pooling}"}
    return Inspection("image", name, facts | _origin(spec), tree(module, "image"))


def _inspect_text(name: str) -> Inspection:
    spec = TEXT[name]
    with torch.device("meta"):
        module = spec.build(spec, Load(source=None))
    facts = {"tokens": f"{spec.max_length}", "joint width": f"{spec.width}"}
    return Inspection("text", name, facts | _origin(spec), tree(module, "text"))


def _inspect_connector(name: str) -> Inspection:
    spec = CONNECTORS[name]
    widths = (1024, 1024) if name == "identity" else (1024, 4096)
    with torch.device("meta"):
        module = spec.build(*widths)
    facts = {"shown for": f"width {widths[0]} to {widths[1]} (CLIP-L to a 7B model)", "paper": spec.paper}
    return Inspection("connector", name, facts, tree(module, "connector"))


def _inspect_dataset(name: str) -> Inspection:
    spec = DATASETS[name]
    settings = ", ".join(f"{field} {value}" for field, value in vars(spec.options).items())
    facts = {
        "description": spec.description,
        "splits": ", ".join(spec.splits),
        "settings": settings or "none",
        "source": spec.source,
        "license": spec.license,
        "citation": spec.citation,
        "prepare": f"vlm preprocess --dataset-id {name}",
    }
    return Inspection("dataset", name, facts, [])


def _inspect_preset(name: str) -> Inspection:
    config = PRESETS[name]
    model, stage, parts = config.model, config.stage, resolve(config.model)
    modules = _without_weights(model, parts)
    trees = [row for part, module in modules.items() for row in tree(module, part)]
    facts = {
        "vision": _part(model.vision, parts.vision, modules["vision"], model.vision_source),
        "connector": f"{model.connector}: {_count(modules['connector']):,} parameters, {parts.connector.paper}".rstrip(", "),
        "language": _part(model.language, parts.language, modules["language"], model.language_source),
        "parameters": f"{sum(_count(module) for module in modules.values()):,}",
    }
    rates = {part: rate for part, rate in vars(stage.lr).items() if rate is not None}
    # last: adapters are added to the towers, and the counts above are without them
    trained = {part: _count_trained(part, modules[part], parts.lora.get(part)) for part in rates}
    facts |= {
        "trained": f"{sum(trained.values()):,}: "
        + ", ".join(f"{_trained_part(part, parts)} at {rates[part]:g} ({trained[part]:,})" for part in rates),
        "tokens an image": f"{parts.tokens_per_tile}",
        "dataset": stage.dataset,
        "global batch": f"{stage.global_batch_size}",
        "run folder": str(config.run_dir),
    }
    return Inspection("preset", name, facts, trees)


def _part(name: str, spec: Any, module: nn.Module, source: str) -> str:
    origin = [source or spec.source, spec.license, spec.paper]
    return f"{name}: {_count(module):,} parameters, {', '.join(word for word in origin if word)}"


def _trained_part(part: str, parts: Composition) -> str:
    if part not in parts.lora:
        return part
    options = parts.lora[part]
    return f"rank-{options.rank} adapter of {part}" + ("" if options.kind == "lora" else f" ({options.kind})")


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _count_trained(part: str, module: nn.Module, lora: LoRAOptions | None) -> int:
    """Values that a rate applies to: all, or those of the adapter, which is added to the module."""
    if lora is None:
        return _count(module)
    with torch.device("meta"):
        add_lora(module, lora, among=ADAPTABLE[part](module))
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _inspect_contrastive(name: str) -> Inspection:
    config = CONTRASTIVE_PRESETS[name]
    model, stage, parts = config.model, config.stage, resolve_dual(config.model)
    with torch.device("meta"):
        encoders = {"image": parts.image.build(parts.image, Load(source=None)), "text": parts.text.build(parts.text, Load(source=None))}
        heads = build_heads(model)
    rates = {part: rate for part, rate in vars(stage.lr).items() if rate is not None}
    trained = {part: _count(getattr(heads, part)) for part in rates}
    facts = {
        "image": _part(model.image, parts.image, encoders["image"], model.image_source),
        "text": _part(model.text, parts.text, encoders["text"], model.text_source),
        "joint width": f"{parts.joint_width}",
        "trained": f"{sum(trained.values()):,}: " + ", ".join(f"{part} at {rates[part]:g} ({count:,})" for part, count in trained.items()),
        "teacher": stage.distill.teacher or "none",
        "dataset": stage.dataset,
        "global batch": f"{stage.global_batch_size}",
        "run folder": str(config.run_dir),
    }
    modules = {**encoders, "image_head": heads.image_head, "text_head": heads.text_head}
    return Inspection("preset", name, facts, [row for path, module in modules.items() for row in tree(module, path)])


INSPECTORS: tuple[tuple[Registry[Any], Callable[[str], Inspection]], ...] = (
    (VISION, _inspect_vision),
    (LANGUAGE, _inspect_language),
    (IMAGE, _inspect_image),
    (TEXT, _inspect_text),
    (CONNECTORS, _inspect_connector),
    (DATASETS, _inspect_dataset),
    (PRESETS, _inspect_preset),
    (CONTRASTIVE_PRESETS, _inspect_contrastive),
)


def _without_weights(config: VisionLanguageConfig, parts: Composition) -> dict[str, nn.Module]:
    """A config's three parts at full size on the meta device."""
    with torch.device("meta"):
        vision: Any = parts.vision.build(parts.vision, Load(source=None, feature_layer=config.feature_layer))
        language = parts.language.build(parts.language, Load(source=None))
        return {"vision": vision, "connector": parts.connector.build(vision.width, parts.language.width), "language": language}


def _origin(spec: Any) -> dict[str, str]:
    count = "not known before the download" if spec.num_parameters is None else f"{spec.num_parameters:,}"
    return {"parameters": count, "source": _source(spec), "license": spec.license, "paper": spec.paper}


def tree(module: nn.Module, path: str, *, depth: int = TREE_DEPTH) -> list[tuple[str, str, int]]:
    """Modules with parameters, down to a depth; of a list of equal layers, the first stands for all."""
    count = sum(p.numel() for p in module.parameters())
    rows = [(path, type(module).__name__, count)]
    if depth == 0:
        return rows
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList) and len(children) > 1:
        name, first = children[0]
        return rows + tree(first, f"{path}.{name} (first of {len(children)})", depth=depth - 1)
    return rows + [row for name, child in children if any(True for _ in child.parameters()) for row in tree(child, f"{path}.{name}", depth=depth - 1)]


def markdown(columns_left_out: frozenset[str] = frozenset({"source", "license", "answer"})) -> str:
    """The tables of docs/components.md: what can be composed, as Markdown."""
    sections = []
    listed = {kind: LISTERS[kind]() for kind in ("vision", "language", "image", "text", "connectors")} | {
        "contrastive presets": contrastive_rows(),
        "presets": _models(),
    }
    for kind, entries in listed.items():
        rows = [{column: value for column, value in row.items() if column not in columns_left_out} for row in entries]
        header = [column.replace("_", " ") for column in rows[0]]
        lines = [header, ["---"] * len(header), *([_markdown_cell(column, value) for column, value in row.items()] for row in rows)]
        sections.append("\n".join([f"**{kind}**", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    sections += [f"{heading.rstrip('.')} (`vlm list presets`)." for heading, models in families().items() if is_large(models)]
    return "\n\n".join(sections) + "\n"


def _markdown_cell(column: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`" if column == "name" else f"{value:,}" if isinstance(value, int) else str(value)

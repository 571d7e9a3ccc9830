"""Presets in few lines: the stages of a model in one row, below the heading of the module that declares them. Resolves no part's name."""

from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap

from vlm.conf.contrastive import ContrastiveConfig, DualEncoderConfig, HeadConfig
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.presets import PRESETS
from vlm.conf.schema import LoRAConfig, LoRATowers, Schedule, StageConfig, TrainConfig

LARGE_FAMILY = 8  # models
CONTRASTIVE = "Contrastive models: heads between frozen encoders"


@dataclass(frozen=True)
class ModelPresets:
    """The presets of one model, in the order of its stages."""

    model: str
    configs: tuple[TrainConfig, ...]

    @property
    def stages(self) -> list[str]:
        """Names of its stages."""
        return [config.stage.name for config in self.configs]

    @property
    def name(self) -> str:
        """`model/stage`, or `model/{stage,stage}` as a shell writes it."""
        return f"{self.model}/{self.stages[0]}" if len(self.stages) == 1 else f"{self.model}/{{{','.join(self.stages)}}}"

    def row(self) -> dict[str, str]:
        """The composition, and what its last stage does: every stage before it can be seen with `vlm inspect`."""
        last = self.configs[-1]
        parts = {"vision": last.model.vision, "connector": last.model.connector, "language": last.model.language}
        stage = {"dataset": last.stage.dataset, "passes": _passes(last.stage), "trains": _trains(last.stage, last.model.lora)}
        return {"name": self.name, **parts, "resize": last.model.resize, **stage}


def families() -> dict[str, tuple[ModelPresets, ...]]:
    """The models of each module of presets, below the first line of its docstring; large families last."""
    found = [(heading, _models(names)) for heading, names in PRESETS.families.items()]
    return dict(sorted(found, key=lambda family: is_large(family[1])))


def is_large(models: tuple[ModelPresets, ...]) -> bool:
    """True for a family that stands in one line where space is short."""
    return len(models) > LARGE_FAMILY


def table(width: int | None = None) -> list[str]:
    """Lines of a table of all models, each family under its heading; one that is wider than `width` columns is folded."""
    header, *entries = _aligned([model.row() for models in families().values() for model in models], width)
    rows = iter(entries)
    said = [*header]
    for heading, models in families().items():
        said += ["", *_folded(heading, width), *(line for _ in models for line in next(rows))]
    return said


def contrastive_table(width: int | None = None) -> list[str]:
    """Lines of a table of the contrastive presets; one that is wider than `width` columns is folded."""
    return [line for entry in _aligned(contrastive_rows(), width) for line in entry]


def contrastive_rows() -> list[dict[str, str]]:
    """The contrastive presets, a row each."""
    return [
        contrastive_row(name, config) for names in CONTRASTIVE_PRESETS.families.values() for name in names for config in [CONTRASTIVE_PRESETS[name]]
    ]


def contrastive_row(name: str, config: ContrastiveConfig) -> dict[str, str]:
    """A contrastive preset: encoders, heads, what they learn from."""
    model, stage = config.model, config.stage
    parts = {"image": model.image, "text": model.text, "heads": _heads(model)}
    return {"name": name, **parts, "dataset": stage.dataset, "passes": _passes(stage), "teacher": stage.distill.teacher or "none"}


def _heads(model: DualEncoderConfig) -> str:
    """`ape of text`, or both: the sides that have one."""
    sides: dict[str, HeadConfig] = {"image": model.image_head, "text": model.text_head}
    return ", ".join(f"{head.kind} of {side}" for side, head in sides.items() if head.kind != "identity")


def _aligned(rows: list[dict[str, str]], width: int | None) -> list[list[str]]:
    """The lines of a header and of each row: columns below each other, or where they are too wide the name, and the rest indented below it."""
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    cells = [{column: column for column in widths}, *rows]
    if width is None or sum(widths.values()) + 2 * (len(widths) - 1) <= width:
        return [["  ".join(row[column].ljust(size) for column, size in widths.items()).rstrip()] for row in cells]
    return [[row["name"], *_folded("; ".join(list(row.values())[1:]), width, indent="    ")] for row in cells]


def _folded(text: str, width: int | None, *, indent: str = "") -> list[str]:
    return [text] if width is None else wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def presets_in_words() -> str:
    """Names of all presets in a sentence; of a large family, how many there are."""
    said = []
    for models in families().values():
        names = [f"{model.model}/{stage}" for model in models for stage in model.stages]
        said += [f"{names[0]} and {len(names) - 1} like it (`vlm list presets`)"] if is_large(models) else names
    return ", ".join(said)


def _models(names: tuple[str, ...]) -> tuple[ModelPresets, ...]:
    grouped = groupby(names, key=lambda name: name.rpartition("/")[0])
    return tuple(ModelPresets(model, tuple(PRESETS[name] for name in presets)) for model, presets in grouped)


def _passes(stage: Schedule) -> str:
    return f"{stage.epochs:g}" if stage.max_steps is None else f"{stage.max_steps:,} steps"


def _adapters(lora: LoRATowers) -> tuple[tuple[str, LoRAConfig, str], ...]:
    return ("language", lora.language, ""), ("vision", lora.vision, " of vision")


def _trains(stage: StageConfig, lora: LoRATowers) -> str:
    adapted = {tower: f"rank-{adapter.rank} adapter{of}" for tower, adapter, of in _adapters(lora) if adapter.rank}
    return ", ".join(adapted.get(part, part) for part in stage.lr.trained)

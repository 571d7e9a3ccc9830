"""`vlm embed DATA --model M`: the vectors of a dataset's pictures and captions, in the cache that training of heads and `vlm search` read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlm.conf.cli import Positional, find_preset, parse
from vlm.conf.contrastive import ContrastiveConfig, ContrastiveStage
from vlm.conf.sources import sources_of
from vlm.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from vlm.data.feature_cache import FeatureCache
    from vlm.types import World


@dataclass(frozen=True)
class Options:
    """How vectors are made, and where they are kept."""

    model: str = ""
    """A dual encoder: a run, a published pair (`clip-b32-224`), or a preset that is to be trained (`ape-demo/align`)."""
    image_source: str = ""
    """Folder or hub id of the image encoder's weights, if they are not where the model's name says."""
    text_source: str = ""
    """The same of the text encoder's; both may lie in one folder."""
    split: str = ""
    """Split of a prepared dataset; empty: the usual one."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    cache_root: Path | None = None
    """Folder of the cached vectors; None: `features` below --data-root, where training looks for them."""
    run_root: Path = Path("runs")
    """Folder of the runs, where a prefix is looked up."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """Of the encoders; fp32, or anything else for bf16, as --precision of the run."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """How vectors are stored; None: as the preset says, or float16, which is what every preset says."""
    batch_size: int = 64
    """Pictures or texts that are encoded at once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size is at least 1; got {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What to encode, and with which encoders."""

    data: Annotated[str, Positional]
    """Pictures with captions as training reads them, or a folder of pictures alone."""
    sides: Literal["both", "image", "text"] = "both"
    """Whether pictures, captions or both are encoded."""


def main(argv: Sequence[str]) -> None:
    """Encode what is not there yet, and print where the vectors are."""
    arguments = parse(Arguments, argv, prog="vlm embed", description="Write the vectors of a dataset into the cache that training and search read.")
    from vlm.distributed.launch import launch
    from vlm.score.gallery import items_of, open_gallery, write_names

    world = launch(arguments.device)
    objective = encoders_of(arguments, world)
    data = open_gallery(arguments.data, data_root=arguments.data_root, split=arguments.split)
    written: dict[str, FeatureCache] = {}
    if arguments.sides != "text":
        written["pictures"] = objective.image_vectors(data.pictures)
        write_names(written["pictures"], items_of(data))
    if arguments.sides != "image" and data.captions:
        written["captions"] = objective.text_vectors(data.captions)
        if objective.config.stage.distill.teacher:
            written["captions, by the teacher"] = objective.teacher_vectors(data.captions)
    if not written:
        raise ConfigError(f"{arguments.data} has no captions. Leave --sides text out to encode its pictures.")
    if world.is_main:
        for what, cache in written.items():
            print(f"{len(cache):,} {what}, width {cache.width}, {str(cache.dtype).removeprefix('torch.')}: {cache.folder}")


def encoders_of(options: Options, world: "World") -> Any:
    """The objective that training has for a model, which knows how its vectors are named and made.

    Raises:
        ConfigError: If there is no such model.
    """
    from vlm.commands.pretrain import objective_of

    config = config_of(options)
    stage = replace(config.stage, cache_dtype=options.cache_dtype or config.stage.cache_dtype, encode_batch_size=options.batch_size)
    settings = {name: getattr(options, name) for name in ("data_root", "cache_root", "run_root", "device", "precision")}
    objective = objective_of(replace(config, stage=stage, **settings), world)
    return replace(objective, config=objective.resolved())


def config_of(options: Options) -> ContrastiveConfig:
    """The run that would train a model's heads.

    Raises:
        ConfigError: If no model is named, or it is a preset of a model that answers.
        CheckpointError: If it is a run of a model that answers.
    """
    if not options.model:
        raise ConfigError(
            "Say which model: --model with a run, a published pair such as clip-b32-224, or a contrastive preset such as ape-demo/align."
        )
    try:
        preset = find_preset(options.model)
    except UnknownNameError:
        from vlm.models.open import dual_config

        preset = ContrastiveConfig(model=dual_config(options.model, run_root=options.run_root), stage=ContrastiveStage(name="embed", dataset=""))
    if not isinstance(preset, ContrastiveConfig):
        raise ConfigError(
            f"{options.model} is a preset of a model that answers. Name a contrastive one (`vlm list presets`), a run or a published pair."
        )
    return replace(preset, model=replace(preset.model, **sources_of(options)))

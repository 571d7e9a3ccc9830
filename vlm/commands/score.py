"""`vlm score --pairs FILE --model NAME --out scores.parquet`: how well each picture and caption of a table fit, one row of numbers a pair."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.conf.cli import parse
from vlm.errors import ConfigError
from vlm.score.job import Job

if TYPE_CHECKING:
    from vlm.score.estimate import Estimate
    from vlm.score.running import Outcome

ENGINES = ("local", "ray")
CONFIG = "--config"


@dataclass(frozen=True, kw_only=True)
class Arguments(Job):
    """What is scored, and how the work is shared."""

    config: Path | None = None
    """YAML file of settings: these, or csv_path, image_path, use_cuda, pretrained_model, batch_size, img_resize. The command line has the last word."""
    shard: str = ""
    """i/n: this process scores every n-th part, beginning with part i (from 0). The last of the n to end joins the parts."""
    engine: str = "local"
    """local: this process, or those that torchrun started; ray: a Ray cluster."""
    actors: int = 1
    """With --engine ray, processes that score, each with a model of its own (and a GPU, where the model is on one)."""
    overwrite: bool = False
    """Take away the scores at --out first."""
    estimate: int = 0
    """Pairs to make an estimate for: a sample is timed, nothing is written."""
    price_per_hour: float = 0.0
    """Of the machine, for the estimate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ENGINES:
            raise ConfigError(f"--engine {self.engine} is not one of {', '.join(ENGINES)}.")
        if self.actors < 1 or (self.actors > 1 and self.engine != "ray"):
            raise ConfigError(f"--actors is at least 1, and more need --engine ray; got {self.actors}.")
        if self.estimate < 0 or self.price_per_hour < 0:
            raise ConfigError("--estimate and --price-per-hour are not below 0.")
        if self.price_per_hour and not self.estimate:
            raise ConfigError("--price-per-hour is about --estimate: add it.")
        if self.shard and (self.overwrite or self.engine == "ray"):
            raise ConfigError("--shard shares the parts at --out with other processes, so it stands with neither --overwrite nor --engine ray.")

    @property
    def job(self) -> Job:
        """The settings without how the work is shared, as every process takes them."""
        return Job(**{field.name: getattr(self, field.name) for field in fields(Job)})


def main(argv: Sequence[str]) -> None:
    """Score a table, or say what that would take."""
    options: dict[str, Any] = {}
    if (config := _config_of(argv)) is not None:
        from vlm.score.original import read_job_config

        options["default"] = Arguments(**read_job_config(config), config=config)
    arguments = parse(Arguments, argv, prog="vlm score", description="Score how well pictures and captions fit.", **options)
    if arguments.estimate:
        estimate(arguments)
    elif arguments.engine == "ray":
        score_with_ray(arguments)
    else:
        score(arguments)


def _config_of(argv: Sequence[str]) -> Path | None:
    """The file behind --config, whose settings are the defaults of the others."""
    for place, word in enumerate(argv):
        if word.startswith(f"{CONFIG}="):
            return Path(word.partition("=")[2])
        if word == CONFIG and place + 1 < len(argv):
            return Path(argv[place + 1])
    return None


def score(arguments: Arguments) -> None:
    """Score this process's share of the parts."""
    from vlm.commands.preprocess import show_progress
    from vlm.distributed.collectives import gather
    from vlm.distributed.launch import launch
    from vlm.score.opening import open_job
    from vlm.score.running import Share, score_parts

    world = launch(arguments.device)
    share = Share.parse(arguments.shard, world)
    opened = open_job(arguments.job, device=world.device)
    if arguments.overwrite:
        if world.is_main:
            opened.parts.remove()
        gather(None, world)
    with opened.scorer:
        outcome = score_parts(opened, share, world, progress=show_progress)
    if world.is_main:
        print(summary(arguments, outcome), flush=True)


def score_with_ray(arguments: Arguments) -> None:
    """Score on a Ray cluster."""
    from vlm.score.ray_engine import score_on_ray

    print(summary(arguments, score_on_ray(arguments.job, actors=arguments.actors, overwrite=arguments.overwrite)), flush=True)


def summary(arguments: Arguments, outcome: "Outcome") -> str:
    """What is printed in the end."""
    from vlm.score.running import in_words

    lines = []
    if outcome.rows:
        speed = outcome.rows / outcome.seconds
        lines.append(
            f"{outcome.rows:,} rows in {outcome.seconds:,.1f} s, {speed:,.1f} pairs/s; {outcome.images:,} pictures and {outcome.texts:,} texts encoded."
        )
    if outcome.missing:
        lines.append(f"{len(outcome.missing):,} of {outcome.num_parts:,} parts are still to be scored by other shards.")
    else:
        lines.append(f"{arguments.out}: {outcome.statuses.total():,} rows, {in_words(outcome.statuses)}.")
    return "\n".join(lines)


def estimate(arguments: Arguments) -> None:
    """Time a sample, and print what all pairs would take."""
    from vlm.score.estimate import measure
    from vlm.score.opening import open_job

    opened = open_job(arguments.job)
    with opened.scorer:
        print(estimate_in_words(measure(opened, arguments.estimate, price_per_hour=arguments.price_per_hour)), flush=True)


def estimate_in_words(found: "Estimate") -> str:
    """The lines of an estimate."""
    memory = f"{found.ram_gb:.2f} GB of memory" + (f", {found.gpu_gb:.2f} GB on the GPU" if found.gpu_gb else "")
    cost = f", {found.cost:,.2f} at {found.price_per_hour:g} an hour" if found.price_per_hour else ""
    return "\n".join(
        [
            f"{found.sample:,} rows with {found.images:,} pictures and {found.texts:,} texts: {found.seconds:.2f} s, {found.pairs_per_second:,.1f} pairs/s.",
            f"Peak: {memory}.",
            f"{found.pairs:,} pairs by one process: {found.days:,.2f} days{cost}, if they are like these.",
        ]
    )

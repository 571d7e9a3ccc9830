"""One stage from config to run folder: checks, parts, data, start, loop, checkpoints. The steps of a run, each a function of its own elsewhere."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vlm.conf.idle import idle_settings
from vlm.conf.schema import BatchPlan, TrainConfig
from vlm.conf.serialize import to_dict
from vlm.connectors.base import check_ridge
from vlm.data.reader import SampleSet, open_dataset
from vlm.data.sample import Sample
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.loader import make_loader
from vlm.data.stream.order import RowOrder, shuffled
from vlm.data.stream.plan import describe as describe_order
from vlm.data.stream.plan import plan_order
from vlm.distributed.collectives import main_first, wait_for_all
from vlm.distributed.launch import choose_precision
from vlm.errors import ConfigError
from vlm.models import checkpoint
from vlm.models.build import build, resolve
from vlm.models.parameters import parameter_table
from vlm.models.vision_language import VisionLanguageModel
from vlm.tracking import JSONL, Progress, Shown, Tracker, Trackers, WandB, check_trackers, counting
from vlm.training import run_folder
from vlm.training.loop import Hooks, count_steps, refuse_broken_weights, train
from vlm.training.recompute import recompute
from vlm.training.start import find_start, freeze_unused, load_start
from vlm.training.warm_start import warm_start
from vlm.types import ChatBatch, World

log = logging.getLogger(__name__)

SINGLY = BatchPlan(world=1, per_device=1, accumulation=1)  # each sample exactly once
BATCHES_OF_16 = BatchPlan(world=1, per_device=16, accumulation=1)  # one step is one batch
WARM_START_SAMPLES = 2_048


@dataclass(frozen=True)
class Validation:
    """How a model is looked at during training.

    Attributes:
        loss: Mean loss over batches.
        look: Answers to the first questions of samples.
    """

    loss: Callable[[VisionLanguageModel, Iterable[ChatBatch]], float]
    look: Callable[[VisionLanguageModel, Sequence[Sample]], list[Shown]]


def run_stage(config: TrainConfig, world: World, validation: Validation) -> Path:
    """Train one stage and return its run folder.

    Raises:
        VLMError: If anything does not fit; names, batch arithmetic, data and the run folder are checked before weights are loaded.
    """
    config = replace(config, model=replace(config.model, template=config.stage.template or config.model.template))
    plan = _check(config, world)
    start = find_start(config)
    samples = open_dataset(config.stage.dataset, data_root=config.data_root, on_bad_row=config.stage.on_bad_row)
    shown = _shown_samples(config)
    precision = choose_precision(config.precision, world.device)
    # Stored as resolved, so that a rerun from config.json is the same run.
    config = replace(config, init_from=start, precision=precision)  # type: ignore[arg-type]

    model = _build(config, precision, start).to(world.device)
    if world.is_main:
        run_folder.create(config)
    examples = _examples(config, model, samples)
    order, num_steps, steps = _plan(config, samples, examples, world)
    if world.is_main:
        log.info("%s: %d samples, %s, %s on %s x %d", config.run_id, order.units.num_samples, steps, precision, world.device.type, world.size)
        for line in [*parameter_table(model), *describe_order(order, config.stage, samples)]:
            log.info(line)
    if config.model.connector_init == "ridge" and start is None:
        num_batches = BATCHES_OF_16.steps(min(len(samples), WARM_START_SAMPLES))
        warm_start(model, make_loader(examples, shuffled(len(samples), config.seed), plan=BATCHES_OF_16, num_steps=num_batches))
    batches = make_loader(
        examples,
        order,
        plan=plan,
        rank=world.rank,
        num_steps=num_steps,
        num_workers=config.stage.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    autocast = precision == "bf16-mixed"
    with Trackers(_trackers(config, num_steps) if world.is_main else []) as trackers:
        hooks = _hooks(config, model, shown, validation, trackers, world=world, num_steps=num_steps, autocast=autocast)
        sources = [entry.name for entry in samples.entries]
        train(model, batches, stage=config.stage, plan=plan, num_steps=num_steps, world=world, autocast=autocast, hooks=hooks, sources=sources)
    wait_for_all(world)  # the other ranks stay until the main one has written the last checkpoint
    return config.run_dir


def _check(config: TrainConfig, world: World) -> BatchPlan:
    """Everything that can be refused without data or weights; returns how batches are cut.

    The run folder is the main process's business: it may exist already when another rank comes here.
    """
    plan = BatchPlan.of(config.stage, world=world.size)
    parts = resolve(config.model)
    context, length = parts.language.max_length, config.stage.max_length
    if length is not None and length > context:
        raise ConfigError(f"--stage.max-length is {length}, but {config.model.language} reads {context} tokens. Set it to {context} at most.")
    if config.model.connector_init == "ridge" and config.init_from is None:
        with torch.device("meta"):
            check_ridge(parts.connector.build(parts.vision.width, parts.language.width))
    check_trackers(config.tracking.trackers)
    if world.is_main:
        for line in idle_settings(config):
            log.warning("warning: %s", line)
        run_folder.check(config)
    return plan


def _shown_samples(config: TrainConfig) -> list[Sample]:
    """The validation samples that are looked at, the first of the dataset; none without a validation dataset."""
    if not config.stage.validation:
        return []
    held_out = open_dataset(config.stage.validation, data_root=config.data_root)
    return [held_out[i] for i in range(min(config.tracking.num_samples, len(held_out)))]


def _build(config: TrainConfig, precision: str, start: Path | None) -> VisionLanguageModel:
    """The model of a run, started from another run's weights if there is one."""
    torch.manual_seed(config.seed)
    model = build(config.model, precision=precision, trained=config.stage.lr.trained, seed=config.seed)
    for line in load_start(model, start) if start is not None else []:
        log.info(line)
    if unused := freeze_unused(model):
        log.info("vision: %s values lie behind the chosen layer, and stay as they are", f"{unused:,}")
    if config.stage.gradient_checkpointing:
        recompute(model.language.blocks())
    return model


def _plan(config: TrainConfig, samples: SampleSet, examples: ChatExamples, world: World) -> tuple[RowOrder, int, str]:
    """The order of the rows, and the steps of the run as number and in words."""
    workers = min(os.cpu_count() or 1, config.stage.num_workers * world.size)  # the other ranks wait while the main one counts
    with main_first(world):
        order = plan_order(config.stage, samples, examples, seed=config.seed, num_workers=workers, progress=counting if world.is_main else None)
    rows, exact = (0, True) if config.stage.max_steps else order.count_rows(config.stage.epochs)
    num_steps = count_steps(config.stage, rows)
    return order, num_steps, f"{'' if exact else 'about '}{num_steps} steps of {config.stage.global_batch_size}{' rows' if order.capacity else ''}"


def _examples(config: TrainConfig, model: VisionLanguageModel, samples: Sequence[Sample]) -> ChatExamples:
    language = model.language
    mixed = samples if isinstance(samples, SampleSet) else None
    longest = config.stage.max_length or language.max_length
    return ChatExamples(
        samples,
        template=language.template,
        tokenizer=language.tokenizer,
        image_token_id=language.image_token_id,
        policy=replace(model.image_policy, reduced_jpeg=config.stage.reduced_jpeg),
        tokens_per_image=model.tokens_per_image,
        max_length=min(longest, config.stage.pack_length or longest),
        limit="--stage.pack-length" if (config.stage.pack_length or longest) < longest else "--stage.max-length",
        source_of=mixed.source_of if mixed else None,
        num_sources=len(mixed.entries) if mixed else 1,
    )


def _trackers(config: TrainConfig, num_steps: int) -> list[Tracker]:
    tracking = config.tracking
    trackers: list[Tracker] = []
    if "wandb" in tracking.trackers:  # first: it may refuse, and then nothing else is open
        trackers.append(
            WandB(run_id=config.run_id, run_dir=config.run_dir, config=to_dict(config), project=tracking.wandb_project, entity=tracking.wandb_entity)
        )
    if "jsonl" in tracking.trackers:
        trackers.append(JSONL(config.run_dir / "metrics.jsonl"))
    return [*trackers, Progress(config.run_id, num_steps)]


def _hooks(
    config: TrainConfig,
    model: VisionLanguageModel,
    shown: Sequence[Sample],
    validation: Validation,
    trackers: Trackers,
    *,
    world: World,
    num_steps: int,
    autocast: bool,
) -> Hooks:
    tracking = config.tracking
    truncated: list[float] = []

    def log_step(step: int, metrics: Mapping[str, float]) -> None:
        if metrics["num_truncated"] and not truncated:
            log.warning(
                "warning: step %d has conversations that are too long, and lose their last turns or words. Metric 'num_truncated' counts them; "
                "--stage.max-length says what is too long.",
                step,
            )
        truncated.extend([metrics["num_truncated"]] if metrics["num_truncated"] else [])
        if step == num_steps and truncated:
            log.info("%d conversations were truncated", sum(truncated))
        if step % tracking.log_every == 0 or step == num_steps:
            trackers.log(step, metrics)

    def after_step(step: int) -> None:
        saves = is_due(step, config.checkpoint_every, num_steps)
        if saves:
            refuse_broken_weights(model, step)  # on every rank, so that none waits for one that has left
        if not world.is_main:
            return
        if saves:  # before anything is looked at, so that a broken validation picture costs no weights
            checkpoint.save(model, config.model, run_folder.checkpoint_folder(config.run_dir, step))
        if shown and is_due(step, tracking.sample_every, num_steps):
            batches = make_loader(_examples(config, model, shown), shuffled(len(shown), config.seed), plan=SINGLY, num_steps=len(shown))
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=autocast):
                loss = validation.loss(model, batches)
            trackers.log(step, {"validation_loss": loss})
            trackers.show(step, validation.look(model, shown))

    return Hooks(log=log_step, after_step=after_step)


def is_due(step: int, every: int | None, last: int) -> bool:
    """True at every `every`-th step, and at the last."""
    return step == last or (every is not None and step % every == 0)

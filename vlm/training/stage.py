"""One stage from config to run folder: checks, parts, data, start, loop, checkpoints. The steps of a run, each a function of its own elsewhere."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from vlm.distributed.collectives import any_rank, from_main, main_first, wait_for_all
from vlm.distributed.launch import choose_precision
from vlm.distributed.placement import Placement
from vlm.distributed.shard import gathered, is_sharded
from vlm.errors import ConfigError, Preempted
from vlm.models import checkpoint
from vlm.models.build import build, resolve
from vlm.models.parameters import parameter_table
from vlm.models.vision_language import VisionLanguageModel
from vlm.tracking import JSONL, Progress, Shown, SystemMetrics, TensorBoard, Tracker, Trackers, WandB, check_trackers, counting
from vlm.training import run_folder
from vlm.training.checkpoints import Checkpoints, RunState
from vlm.training.compilation import compile_blocks
from vlm.training.incidents import Incidents
from vlm.training.interrupts import stop_signals
from vlm.training.loop import Hooks, Steps, Trainee, count_steps, train
from vlm.training.meter import make_meter
from vlm.training.precision_guard import refuse_slow_products
from vlm.training.recompute import recompute
from vlm.training.recorder import Recorder
from vlm.training.resume import digest_order, find_resume, load_optimizer, read_state
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
        score: Answers compared with their references, as metrics by name; with --tracking.generation-metrics.
    """

    loss: Callable[[VisionLanguageModel, Iterable[ChatBatch]], float]
    look: Callable[[VisionLanguageModel, Sequence[Sample]], list[Shown]]
    score: Callable[[Sequence[Shown]], Mapping[str, float]]


def run_stage(config: TrainConfig, world: World, validation: Validation) -> Path:
    """Train one stage, or go on with it, and return its run folder.

    Raises:
        VLMError: If anything does not fit; names, batch arithmetic, data and the run folder are checked before weights are loaded.
        Preempted: If the run was told to end, and has saved where it stands.
    """
    config = replace(config, model=replace(config.model, template=config.stage.template or config.model.template))
    plan = _check(config, world)
    precision = choose_precision(config.precision, world.device)
    resumed = from_main(find_resume(replace(config, precision=precision)) if world.is_main else None, world)  # type: ignore[arg-type]
    start = resumed or find_start(config)
    samples = open_dataset(config.stage.dataset, data_root=config.data_root, on_bad_row=config.stage.on_bad_row)
    shown = _shown_samples(config)
    # Stored as resolved, so that a rerun from config.json is the same run.
    config = replace(config, init_from=config.init_from if resumed else start, precision=precision)  # type: ignore[arg-type]

    placement = _placement(config, world)
    model = _build(config, precision, start)
    if not placement.is_sharded:  # sharding moves unit by unit, so that no device ever holds the whole model
        model.to(world.device)
    examples = _examples(config, model, samples)
    order, num_steps, steps = _plan(config, samples, examples, world)
    state = read_state(resumed, digest_order(order)) if resumed else RunState(data=digest_order(order))
    if world.is_main:
        (run_folder.store if resumed else run_folder.create)(config)
        log.info("%s: %d samples, %s, %s on %s x %d", config.run_id, order.units.num_samples, steps, precision, world.device.type, world.size)
        for line in [*parameter_table(model), *describe_order(order, config.stage, samples)]:
            log.info(line)
        if resumed:
            log.info("resumed after step %d, from %s", state.step, resumed)
    if config.model.connector_init == "ridge" and start is None:
        num_batches = BATCHES_OF_16.steps(min(len(samples), WARM_START_SAMPLES))
        warm_start(model, make_loader(examples, shuffled(len(samples), config.seed), plan=BATCHES_OF_16, num_steps=num_batches))
    values = checkpoint.model_values(model, config.model)
    trainee = Trainee.of(model, config.stage, world, placement)
    if resumed:
        load_optimizer(trainee, resumed, world)
    _train(_Run(config, world, trainee, examples, order, plan, num_steps, values), state, samples, shown, validation)
    return config.run_dir


@dataclass(frozen=True)
class _Run:
    """What a stage has built before its first step."""

    config: TrainConfig
    world: World
    trainee: Trainee
    examples: ChatExamples
    order: RowOrder
    plan: BatchPlan
    num_steps: int
    model_values: Mapping[str, Any]

    @property
    def autocast(self) -> bool:
        """True where weights are in fp32 though the run computes in bf16: the trained ones of bf16-mixed, adapters of bf16."""
        trained_in_fp32 = any(weight.dtype == torch.float32 for weight in self.trainee.weights)
        return self.config.precision == "bf16-mixed" or (self.config.precision == "bf16" and trained_in_fp32)


def _train(run: _Run, state: RunState, samples: SampleSet, shown: Sequence[Sample], validation: Validation) -> None:
    config, world = run.config, run.world
    checkpoints = Checkpoints(config.run_dir, world, keep_last=config.keep_last, keep_every=config.keep_every)
    recorder = Recorder(run.trainee, run.model_values, checkpoints, world, state)
    batches = make_loader(
        run.examples,
        run.order,
        plan=run.plan,
        rank=world.rank,
        num_steps=max(0, run.num_steps - state.step),
        start=state.position,
        num_workers=config.stage.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    trackers = Trackers(_trackers(config, run.num_steps, state.step) if world.is_main else [], also=SystemMetrics(world.device))
    with trackers, checkpoints, stop_signals() as signaled:
        limit = math.inf if config.stage.max_time is None else config.stage.max_time * 3600
        hooks = Hooks(
            log=_logger(config, trackers, run.num_steps),
            after_step=_after_step(run, recorder, shown, validation, trackers),
            wants_stop=lambda: bool(signaled()) or recorder.seconds > limit,
            incident=Incidents(config.run_dir, world, lambda i: samples[i].id),
            watched=refuse_slow_products if config.precision.startswith("bf16") else nullcontext,
        )
        train(
            run.trainee,
            batches,
            stage=config.stage,
            plan=run.plan,
            steps=Steps(run.num_steps, first=state.step, seed=config.seed),
            world=world,
            autocast=run.autocast,
            hooks=hooks,
            sources=[entry.name for entry in samples.entries],
            on_nan=config.on_nan,
            meter=make_meter(config, precision=config.precision, world=world),
        )
        recorder.finish()
        _say_end(run, recorder.step, from_main(signaled(), world), stopped=any_rank(bool(signaled()), world))


def _say_end(run: _Run, step: int, signal: str, *, stopped: bool) -> None:
    """Where a run ended before its last step.

    Raises:
        Preempted: If a signal ended it.
    """
    if step >= run.num_steps:
        return
    saved = f"after step {step} of {run.num_steps}; --resume auto goes on from there"
    if stopped:
        raise Preempted(f"ended by {signal or 'a signal to another rank'} {saved}.")
    if run.world.is_main:
        log.info("--stage.max-time is over %s", saved)


def _check(config: TrainConfig, world: World) -> BatchPlan:
    """Everything that can be refused without data or weights; returns how batches are cut.

    The run folder is the main process's business: it may exist already when another rank comes here.
    """
    plan = BatchPlan.of(config.stage, world=world.size)
    _placement(config, world)
    parts = resolve(config.model)
    context, length = parts.language.max_length, config.stage.max_length
    if length is not None and length > context:
        raise ConfigError(f"--stage.max-length is {length}, but {config.model.language} reads {context} tokens. Set it to {context} at most.")
    if config.model.connector_init == "ridge" and config.init_from is None:
        with torch.device("meta"):
            check_ridge(parts.connector.build(parts.vision.width, parts.language.width))
    check_trackers(config.tracking.trackers)
    if world.is_main:
        for line in idle_settings(config, ranks=world.size):
            log.warning("warning: %s", line)
        run_folder.check(config)
    return plan


def _placement(config: TrainConfig, world: World) -> Placement:
    parallel = config.parallel
    return Placement.of(parallel.strategy, world, shard_size=parallel.shard_size, reshard_after_forward=parallel.reshard_after_forward)


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
    for part in config.stage.compile:
        blocks = getattr(model, part).blocks()
        compile_blocks(blocks[:-1] if part == "language" else blocks)
    for part in config.stage.gradient_checkpointing:
        recompute(getattr(model, part).blocks())
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


def _trackers(config: TrainConfig, num_steps: int, taken: int) -> list[Tracker]:
    tracking = config.tracking
    trackers: list[Tracker] = []
    if "wandb" in tracking.trackers:  # first: it may refuse, and then nothing else is open
        trackers.append(
            WandB(run_id=config.run_id, run_dir=config.run_dir, config=to_dict(config), project=tracking.wandb_project, entity=tracking.wandb_entity)
        )
    if "jsonl" in tracking.trackers:
        trackers.append(JSONL(config.run_dir / "metrics.jsonl", after_step=taken))
    if "tensorboard" in tracking.trackers:
        trackers.append(TensorBoard(config.run_dir / "tensorboard", after_step=taken))
    return [*trackers, Progress(config.run_id, num_steps, taken=taken)]


def _logger(config: TrainConfig, trackers: Trackers, num_steps: int) -> Callable[[int, Mapping[str, float]], None]:
    """What is done with the metrics of a step."""
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

    return log_step


def _after_step(
    run: _Run, recorder: Recorder, shown: Sequence[Sample], validation: Validation, trackers: Trackers
) -> Callable[[int, tuple[int, ...]], None]:
    """Checkpoints and validation."""
    config, world = run.config, run.world
    model: VisionLanguageModel = run.trainee.model  # type: ignore[assignment]

    def after_step(step: int, position: tuple[int, ...]) -> None:
        recorder.advance(step, position)
        if is_due(step, config.checkpoint_every, run.num_steps):  # before anything is looked at, so that a broken picture costs no weights
            recorder.save()
        if shown and is_due(step, config.tracking.sample_every, run.num_steps):
            if world.is_main or is_sharded(model):  # the trackers of other ranks keep nothing
                look(step)
            wait_for_all(world)  # with more patience than the exchange of gradients has

    def look(step: int) -> None:
        batches = make_loader(_examples(config, model, shown), shuffled(len(shown), config.seed), plan=SINGLY, num_steps=len(shown))
        with gathered(model):
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=run.autocast):
                loss = validation.loss(model, batches)
            answers = validation.look(model, shown)
        trackers.log(step, {"validation_loss": loss, **(validation.score(answers) if config.tracking.generation_metrics else {})})
        trackers.show(step, answers)

    return after_step


def is_due(step: int, every: int | None, last: int) -> bool:
    """True at every `every`-th step, and at the last."""
    return step == last or (every is not None and step % every == 0)

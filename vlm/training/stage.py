"""One stage from config to run folder: checks, data, parts, start, loop, checkpoints. What is trained is an `Objective`; the steps are the same for all."""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlm.conf.idle import idle_settings
from vlm.conf.schema import BatchPlan, RunConfig
from vlm.conf.serialize import to_dict
from vlm.distributed.collectives import any_rank, from_main, wait_for_all
from vlm.distributed.launch import choose_precision
from vlm.distributed.placement import Placement
from vlm.distributed.shard import gathered, is_sharded
from vlm.errors import Preempted
from vlm.tracking import JSONL, Progress, SystemMetrics, TensorBoard, Tracker, Trackers, WandB, check_trackers
from vlm.training import run_folder
from vlm.training.checkpoints import Checkpoints, RunState
from vlm.training.incidents import Incidents
from vlm.training.interrupts import stop_signals
from vlm.training.loop import Hooks, Steps, Trainee, train
from vlm.training.objective import Objective, Stream
from vlm.training.precision_guard import refuse_slow_products
from vlm.training.recorder import Recorder
from vlm.training.resume import find_resume, load_optimizer, read_state
from vlm.types import World

log = logging.getLogger(__name__)


def run_stage(objective: Any, world: World) -> Path:
    """Train one stage, or go on with it, and return its run folder.

    Args:
        objective: What is trained: an `Objective`, a frozen dataclass with the run's config.
        world: The processes of this run.

    Raises:
        VLMError: If anything does not fit; names, batch arithmetic, data and the run folder are checked before weights are loaded.
        Preempted: If the run was told to end, and has saved where it stands.
    """
    objective = replace(objective, config=objective.resolved())
    plan = _check(objective, world)
    precision = choose_precision(objective.config.precision, world.device)
    objective = replace(objective, config=replace(objective.config, precision=precision))
    resumed = from_main(find_resume(objective.config) if world.is_main else None, world)
    start = resumed or objective.find_start()
    objective.open_data()
    placement = _placement(objective.config, world)
    model = objective.build(precision=precision, start=start)
    if not placement.is_sharded:  # sharding moves unit by unit, so that no device ever holds the whole model
        model.to(world.device)
    stream = objective.stream(model, world, plan)
    state = read_state(resumed, stream.digest) if resumed else RunState(data=stream.digest)
    # Stored as resolved, so that a rerun from config.json is the same run.
    config = objective.config if resumed else replace(objective.config, init_from=start)
    if world.is_main:
        (run_folder.store if resumed else run_folder.create)(config)
        log.info("%s: %s, %s on %s x %d", config.run_id, stream.summary, precision, world.device.type, world.size)
        for line in [*objective.describe(model), *stream.lines]:
            log.info(line)
        if resumed:
            log.info("resumed after step %d, from %s", state.step, resumed)
    if start is None:
        objective.prepare(model)
    values = objective.model_values(model)
    trainee = Trainee.of(model, config.stage, world, placement)
    if resumed:
        load_optimizer(trainee, resumed, world)
    _train(_Run(config, world, objective, trainee, stream, plan, values), state)
    return config.run_dir


@dataclass(frozen=True)
class _Run:
    """What a stage has built before its first step."""

    config: RunConfig
    world: World
    objective: Objective
    trainee: Trainee
    stream: Stream
    plan: BatchPlan
    model_values: Mapping[str, Any]

    @property
    def num_steps(self) -> int:
        """Number of the last step."""
        return self.stream.num_steps

    @property
    def autocast(self) -> bool:
        """True where weights are in fp32 though the run computes in bf16: the trained ones of bf16-mixed, adapters of bf16."""
        trained_in_fp32 = any(weight.dtype == torch.float32 for weight in self.trainee.weights)
        return self.config.precision == "bf16-mixed" or (self.config.precision == "bf16" and trained_in_fp32)


def _train(run: _Run, state: RunState) -> None:
    config, world = run.config, run.world
    checkpoints = Checkpoints(config.run_dir, world, keep_last=config.keep_last, keep_every=config.keep_every)
    recorder = Recorder(run.trainee, run.model_values, checkpoints, world, state)
    batches = run.stream.batches(max(0, run.num_steps - state.step), state.position)
    trackers = Trackers(_trackers(config, run.num_steps, state.step) if world.is_main else [], also=SystemMetrics(world.device))
    with trackers, checkpoints, stop_signals() as signaled:
        limit = math.inf if config.stage.max_time is None else config.stage.max_time * 3600
        hooks = Hooks(
            log=_logger(config, trackers, run.num_steps),
            after_step=_after_step(run, recorder, trackers),
            wants_stop=lambda: bool(signaled()) or recorder.seconds > limit,
            incident=Incidents(config.run_dir, world, run.stream.sample_id),
            watched=refuse_slow_products if config.precision.startswith("bf16") and run.objective.is_exact_in_bf16 else nullcontext,
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
            sources=run.stream.sources,
            on_nan=config.on_nan,
            meter=run.objective.meter(precision=config.precision, world=world),
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


def _check(objective: Objective, world: World) -> BatchPlan:
    """Everything that can be refused without data or weights; returns how batches are cut.

    The run folder is the main process's business: it may exist already when another rank comes here.
    """
    config = objective.config
    _placement(config, world)
    plan = objective.plan(world)
    check_trackers(config.tracking.trackers)
    if world.is_main:
        for line in idle_settings(config, ranks=world.size):
            log.warning("warning: %s", line)
        run_folder.check(config)
    return plan


def _placement(config: RunConfig, world: World) -> Placement:
    parallel = config.parallel
    return Placement.of(parallel.strategy, world, shard_size=parallel.shard_size, reshard_after_forward=parallel.reshard_after_forward)


def _trackers(config: RunConfig, num_steps: int, taken: int) -> list[Tracker]:
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


def _logger(config: RunConfig, trackers: Trackers, num_steps: int) -> Callable[[int, Mapping[str, float]], None]:
    """What is done with the metrics of a step."""
    tracking = config.tracking
    truncated: list[float] = []

    def log_step(step: int, metrics: Mapping[str, float]) -> None:
        lost = metrics.get("num_truncated", 0)
        if lost and not truncated:
            log.warning(
                "warning: step %d has conversations that are too long, and lose their last turns or words. Metric 'num_truncated' counts them; "
                "--stage.max-length says what is too long.",
                step,
            )
        truncated.extend([lost] if lost else [])
        if step == num_steps and truncated:
            log.info("%d conversations were truncated", sum(truncated))
        if step % tracking.log_every == 0 or step == num_steps:
            trackers.log(step, metrics)

    return log_step


def _after_step(run: _Run, recorder: Recorder, trackers: Trackers) -> Callable[[int, tuple[int, ...]], None]:
    """Checkpoints and validation."""
    config, world, model = run.config, run.world, run.trainee.model
    autocast: Callable[[], AbstractContextManager] = partial(torch.autocast, world.device.type, dtype=torch.bfloat16, enabled=run.autocast)

    def after_step(step: int, position: tuple[int, ...]) -> None:
        recorder.advance(step, position)
        if is_due(step, config.checkpoint_every, run.num_steps):  # before anything is looked at, so that a broken picture costs no weights
            recorder.save()
        if run.objective.is_looked_at and is_due(step, config.tracking.sample_every, run.num_steps):
            if world.is_main or is_sharded(model):  # the trackers of other ranks keep nothing
                look(step)
            wait_for_all(world)  # with more patience than the exchange of gradients has

    def look(step: int) -> None:
        with gathered(model):
            metrics, samples = run.objective.look(model, autocast)
        trackers.log(step, metrics)
        if samples:
            trackers.show(step, samples)

    return after_step


def is_due(step: int, every: int | None, last: int) -> bool:
    """True at every `every`-th step, and at the last."""
    return step == last or (every is not None and step % every == 0)

"""One stage from config to run folder: checks, parts, data, start, loop, checkpoints. The steps of a run, each a function of its own elsewhere."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm.conf.schema import BatchPlan, TrainConfig
from vlm.conf.serialize import to_dict
from vlm.data.loader import ChatExamples, make_loader
from vlm.data.reader import SampleSet, open_dataset
from vlm.data.sample import Sample
from vlm.distributed.collectives import wait_for_all
from vlm.distributed.launch import choose_precision
from vlm.models import checkpoint
from vlm.models.build import build, resolve
from vlm.models.vision_language import PARTS, VisionLanguageModel
from vlm.tracking import JSONL, Progress, Shown, Tracker, Trackers, WandB
from vlm.training import run_folder
from vlm.training.loop import Hooks, count_steps, train
from vlm.training.warm_start import warm_start
from vlm.types import ChatBatch, World

log = logging.getLogger(__name__)

ONE_AT_A_TIME = BatchPlan(world=1, per_device=16, accumulation=1)  # of reading data outside of training
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
    plan = BatchPlan.of(config.stage, world=world.size)
    resolve(config.model)
    run_folder.check_free(config)
    samples = open_dataset(config.stage.dataset, data_root=config.data_root)
    held_out = open_dataset(config.stage.validation, data_root=config.data_root) if config.stage.validation else None
    num_steps = count_steps(config.stage, len(samples))
    precision = choose_precision(config.precision, world.device)

    model = _build(config, precision).to(world.device)
    if world.is_main:
        run_folder.create(config)
        log.info(
            "%s: %d samples, %d steps of %d, %s on %s",
            config.run_id,
            len(samples),
            num_steps,
            config.stage.global_batch_size,
            precision,
            world.device,
        )
        log.info(describe(model))
    wait_for_all(world)
    if config.model.connector_init == "ridge" and config.init_from is None:
        some = min(len(samples), WARM_START_SAMPLES)
        warm_start(model, make_loader(_examples(config, model, samples), plan=ONE_AT_A_TIME, seed=config.seed, num_steps=ONE_AT_A_TIME.steps(some)))
    batches = make_loader(
        _examples(config, model, samples), plan=plan, rank=world.rank, seed=config.seed, num_steps=num_steps, num_workers=config.stage.num_workers
    )
    with Trackers(_trackers(config, num_steps) if world.is_main else []) as trackers:
        hooks = _hooks(config, model, held_out, validation, trackers, world=world, num_steps=num_steps)
        train(model, batches, stage=config.stage, plan=plan, num_steps=num_steps, world=world, autocast=precision == "bf16-mixed", hooks=hooks)
    return config.run_dir


def _build(config: TrainConfig, precision: str) -> VisionLanguageModel:
    """The model of a run, started from another run's weights if the config says so."""
    torch.manual_seed(config.seed)
    model = build(config.model, precision=precision, trained=config.stage.lr.trained, seed=config.seed)
    if config.stage.gradient_checkpointing:
        language: Any = model.language.model
        language.gradient_checkpointing_enable({"use_reentrant": False})
    if config.init_from is not None:
        folder = checkpoint.find_checkpoint(config.init_from, run_root=config.run_root)
        checkpoint.check_fingerprints(model, checkpoint.read_manifest(folder), folder)
        for line in checkpoint.load_trained(model, folder):
            log.info("from %s: %s", folder, line)
    return model


def _examples(config: TrainConfig, model: VisionLanguageModel, samples: SampleSet) -> ChatExamples:
    language = model.language
    return ChatExamples(
        samples,
        template=language.template,
        tokenizer=language.tokenizer,
        image_token_id=language.image_token_id,
        policy=model.image_policy,
        tokens_per_image=model.tokens_per_image,
        max_length=min(config.stage.max_length or language.max_length, language.max_length),
    )


def describe(model: VisionLanguageModel) -> str:
    """A line for each part: parameters, and how many of them are trained."""
    lines = []
    for part in PARTS:
        sizes = [(p.numel(), p.requires_grad) for p in getattr(model, part).parameters()]
        lines.append(f"  {part:10} {sum(n for n, _ in sizes):>15,} parameters, {sum(n for n, trained in sizes if trained):>13,} trained")
    return "\n".join(lines)


def _trackers(config: TrainConfig, num_steps: int) -> list[Tracker]:
    tracking = config.tracking
    trackers: list[Tracker] = [Progress(config.run_id, num_steps)]
    if "jsonl" in tracking.trackers:
        trackers.append(JSONL(config.run_dir / "metrics.jsonl"))
    if "wandb" in tracking.trackers:
        trackers.append(
            WandB(run_id=config.run_id, run_dir=config.run_dir, config=to_dict(config), project=tracking.wandb_project, entity=tracking.wandb_entity)
        )
    return trackers


def _hooks(
    config: TrainConfig,
    model: VisionLanguageModel,
    held_out: SampleSet | None,
    validation: Validation,
    trackers: Trackers,
    *,
    world: World,
    num_steps: int,
) -> Hooks:
    tracking = config.tracking

    def log_step(step: int, metrics: Mapping[str, float]) -> None:
        if step % tracking.log_every == 0 or step == num_steps:
            trackers.log(step, metrics)

    def after_step(step: int) -> None:
        if not world.is_main:
            return
        if held_out is not None and is_due(step, tracking.sample_every, num_steps):
            count = min(tracking.num_samples, len(held_out))
            batches = make_loader(_examples(config, model, held_out), plan=ONE_AT_A_TIME, seed=config.seed, num_steps=ONE_AT_A_TIME.steps(count))
            trackers.log(step, {"validation_loss": validation.loss(model, batches)})
            trackers.show(step, validation.look(model, [held_out[i] for i in range(count)]))
        if is_due(step, config.checkpoint_every, num_steps):
            checkpoint.save(model, config.model, run_folder.checkpoint_folder(config.run_dir, step))

    return Hooks(log=log_step, after_step=after_step)


def is_due(step: int, every: int | None, last: int) -> bool:
    """True at every `every`-th step, and at the last."""
    return step == last or (every is not None and step % every == 0)

"""Training a vision-language model on conversations: the next-token objective."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vlm.conf.schema import BatchPlan, TrainConfig
from vlm.connectors.base import check_ridge
from vlm.data.reader import SampleSet, open_dataset
from vlm.data.sample import Sample
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.loader import make_loader
from vlm.data.stream.order import Position, shuffled
from vlm.data.stream.plan import describe, plan_order
from vlm.distributed.collectives import main_first
from vlm.errors import ConfigError
from vlm.models import checkpoint
from vlm.models.build import build, resolve
from vlm.models.parameters import parameter_table
from vlm.models.vision_language import VisionLanguageModel
from vlm.tracking import Shown, counting
from vlm.training.compilation import compile_part
from vlm.training.loop import count_steps
from vlm.training.meter import Meter, make_meter
from vlm.training.objective import Stream
from vlm.training.recompute import recompute
from vlm.training.resume import digest_order
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


@dataclass(frozen=True)
class Generative:
    """The `Objective` of vision-language models."""

    config: TrainConfig
    validation: Validation

    is_exact_in_bf16 = True

    @cached_property
    def samples(self) -> SampleSet:
        """The training data."""
        return open_dataset(self.config.stage.dataset, data_root=self.config.data_root, on_bad_row=self.config.stage.on_bad_row)

    @cached_property
    def shown(self) -> list[Sample]:
        """The validation samples that are looked at, the first of the dataset; none without a validation dataset."""
        if not self.config.stage.validation:
            return []
        held_out = open_dataset(self.config.stage.validation, data_root=self.config.data_root)
        return [held_out[i] for i in range(min(self.config.tracking.num_samples, len(held_out)))]

    def resolved(self) -> TrainConfig:
        """The config with the template of the stage in the model."""
        config = self.config
        return replace(config, model=replace(config.model, template=config.stage.template or config.model.template))

    def plan(self, world: World) -> BatchPlan:
        """How batches are cut.

        Raises:
            ConfigError: If batch sizes, lengths or parts do not fit.
        """
        config = self.config
        plan = BatchPlan.of(config.stage, world=world.size)
        parts = resolve(config.model)
        context, length = parts.language.max_length, config.stage.max_length
        if length is not None and length > context:
            raise ConfigError(f"--stage.max-length is {length}, but {config.model.language} reads {context} tokens. Set it to {context} at most.")
        if config.model.connector_init == "ridge" and config.init_from is None:
            with torch.device("meta"):
                check_ridge(parts.connector.build(parts.vision.width, parts.language.width))
        return plan

    def find_start(self) -> Path | None:
        """The checkpoint that `--init-from` names."""
        return find_start(self.config)

    def open_data(self) -> None:
        """Open training and validation data."""
        _ = self.samples, self.shown

    def build(self, *, precision: str, start: Path | None) -> VisionLanguageModel:
        """The model, started from another run's weights if there is one."""
        config = self.config
        torch.manual_seed(config.seed)
        model = build(config.model, precision=precision, trained=config.stage.lr.trained, seed=config.seed)
        for line in load_start(model, start) if start is not None else []:
            log.info(line)
        if unused := freeze_unused(model):
            log.info("vision: %s values lie behind the chosen layer, and stay as they are", f"{unused:,}")
        for part in config.stage.compile:
            compile_part(model, part)
        for part in config.stage.gradient_checkpointing:
            recompute(getattr(model, part).blocks())
        return model

    def stream(self, model: VisionLanguageModel, world: World, plan: BatchPlan) -> Stream:
        """Rows of conversations."""
        stage, samples, examples = self.config.stage, self.samples, chat_examples(self.config, model, self.samples)
        workers = min(os.cpu_count() or 1, stage.num_workers * world.size)  # the other ranks wait while the main one counts
        with main_first(world):
            order = plan_order(stage, samples, examples, seed=self.config.seed, num_workers=workers, progress=counting if world.is_main else None)
        rows, exact = (0, True) if stage.max_steps else order.count_rows(stage.epochs)
        num_steps = count_steps(stage, rows)

        def batches(count: int, start: Position) -> Iterable[ChatBatch]:
            pinned = world.device.type == "cuda"
            cut = {"plan": plan, "rank": world.rank, "num_steps": count, "start": start}
            return make_loader(examples, order, **cut, num_workers=stage.num_workers, pin_memory=pinned)

        return Stream(
            digest=digest_order(order),
            num_steps=num_steps,
            summary=f"{order.units.num_samples:,} samples, {'' if exact else 'about '}{num_steps:,} steps of {stage.global_batch_size}"
            f"{' rows' if order.capacity else ''}",
            lines=describe(order, stage, samples),
            batches=batches,
            sample_id=lambda i: samples[i].id,
            sources=[entry.name for entry in samples.entries],
        )

    def prepare(self, model: VisionLanguageModel) -> None:
        """Start the connector by ridge regression, where the model says so."""
        if self.config.model.connector_init == "ridge":
            order = shuffled(len(self.samples), self.config.seed)
            num_batches = BATCHES_OF_16.steps(min(len(self.samples), WARM_START_SAMPLES))
            warm_start(model, make_loader(chat_examples(self.config, model, self.samples), order, plan=BATCHES_OF_16, num_steps=num_batches))

    def describe(self, model: VisionLanguageModel) -> list[str]:
        """The table of its parameters."""
        return parameter_table(model)

    def model_values(self, model: VisionLanguageModel) -> dict[str, Any]:
        """The contents of `model.json`."""
        return checkpoint.model_values(model, self.config.model)

    def meter(self, *, precision: str, world: World) -> Meter:
        """The roofline meter."""
        return make_meter(self.config, precision=precision, world=world)

    @property
    def is_looked_at(self) -> bool:
        """True if there are validation samples."""
        return bool(self.shown)

    def look(self, model: VisionLanguageModel, autocast: Callable[[], AbstractContextManager]) -> tuple[dict[str, float], list[Shown]]:
        """Validation loss, and answers to the first questions."""
        batches = make_loader(
            chat_examples(self.config, model, self.shown), shuffled(len(self.shown), self.config.seed), plan=SINGLY, num_steps=len(self.shown)
        )
        with autocast():
            loss = self.validation.loss(model, batches)
        answers = self.validation.look(model, self.shown)
        return {"validation_loss": loss, **(self.validation.score(answers) if self.config.tracking.generation_metrics else {})}, answers


def chat_examples(config: TrainConfig, model: VisionLanguageModel, samples: Sequence[Sample]) -> ChatExamples:
    """Samples as a model of this run reads them."""
    language, stage = model.language, config.stage
    mixed = samples if isinstance(samples, SampleSet) else None
    longest = stage.max_length or language.max_length
    return ChatExamples(
        samples,
        template=language.template,
        tokenizer=language.tokenizer,
        image_token_id=language.image_token_id,
        policy=replace(model.image_policy, reduced_jpeg=stage.reduced_jpeg),
        tokens_per_image=model.tokens_per_image,
        max_length=min(longest, stage.pack_length or longest),
        limit="--stage.pack-length" if (stage.pack_length or longest) < longest else "--stage.max-length",
        source_of=mixed.source_of if mixed else None,
        num_sources=len(mixed.entries) if mixed else 1,
    )

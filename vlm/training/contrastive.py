"""Training the heads of a dual encoder on cached vectors: the contrastive objective, with distillation from the image encoder's own text encoder."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.backbones.text import TEXT
from vlm.conf.contrastive import ContrastiveConfig
from vlm.conf.schema import BatchPlan
from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned, open_captioned
from vlm.data.benchmarks.prompts import prompts_of, templates_of
from vlm.data.feature_cache import FeatureCache
from vlm.data.stream.order import Position
from vlm.data.stream.pairs import Captions, FreeTexts, PairBatch, PairLoader, PairOrder, TextOrder, count_batches, refuse_accumulation, refuse_uneven
from vlm.errors import CheckpointError, ConfigError, DataFormatError
from vlm.models import checkpoint
from vlm.models.contrastive import unit
from vlm.models.dual_build import build_encoder, build_heads, native_text, resolve_dual, source_of
from vlm.models.dual_encoder import AlignmentHeads, heads_values
from vlm.models.head_flops import HeadFlops
from vlm.models.parameters import parameter_table
from vlm.tracking import Shown
from vlm.training.features import Frozen, Vectors, fingerprint_of
from vlm.training.meter import Meter, meter_of
from vlm.training.objective import Stream
from vlm.types import World

log = logging.getLogger(__name__)

CLASSES = "classes:"  # begins the name of a file of class names in --stage.distill.texts
LARGEST_VALIDATION = 4_096  # pairs whose loss is computed at once


@dataclass(frozen=True)
class Measures:
    """How heads are looked at during training, and how the data is checked.

    Attributes:
        retrieval: Metrics of unit vectors of images and captions, and the number of each caption's image.
        overlap: Refuses validation pictures that are trained on, unless `allow` says otherwise; what it returns is a sentence.
    """

    retrieval: Callable[[Tensor, Tensor, Tensor], Mapping[str, float]]
    overlap: Callable[..., Any]


@dataclass(frozen=True)
class PairVectors:
    """The cached vectors of a dataset."""

    data: Captioned
    image: FeatureCache
    text: FeatureCache


@dataclass(frozen=True)
class Contrastive:
    """The `Objective` of dual encoders."""

    config: ContrastiveConfig
    measures: Measures
    world: World

    is_exact_in_bf16 = False  # similarities are in fp32 on purpose

    def resolved(self) -> ContrastiveConfig:
        """The config with the name of the teacher."""
        config = self.config
        if config.stage.distill.teacher != "native":
            return config
        return replace(config, stage=replace(config.stage, distill=replace(config.stage.distill, teacher=native_text(config.model))))

    def plan(self, world: World) -> BatchPlan:
        """How batches are cut: once for each rank, never into micro-batches.

        Raises:
            ConfigError: If the batch cannot be cut evenly, or is to be cut into micro-batches; if the encoders do not fit, or there is a setting of
                distillation without a teacher.
        """
        stage, parts = self.config.stage, resolve_dual(self.config.model)
        distill = stage.distill
        if distill.texts and not distill.teacher:
            raise ConfigError("--stage.distill.texts are learned from a teacher: set --stage.distill.teacher (native is the image encoder's own).")
        if distill.teacher and TEXT[distill.teacher].width != parts.joint_width:
            raise ConfigError(
                f"The teacher {distill.teacher} has vectors of width {TEXT[distill.teacher].width}, the joint space has {parts.joint_width}. "
                "Distillation needs the teacher's own space: leave the image side without a head, or distillation out."
            )
        refuse_uneven(stage.global_batch_size, world.size)
        if stage.per_device_batch_size is not None:
            refuse_accumulation(stage.global_batch_size, stage.per_device_batch_size, world.size)
        return BatchPlan(world=world.size, per_device=stage.global_batch_size // world.size, accumulation=1)

    def find_start(self) -> Path | None:
        """The checkpoint that `--init-from` names, with heads between the same encoders."""
        config = self.config
        if config.init_from is None:
            return None
        folder = checkpoint.find_checkpoint(config.init_from, run_root=config.run_root)
        stored = checkpoint.read_manifest(folder).config
        shape = ("image", "text", "image_head", "text_head", "joint_width")
        different = [name for name in shape if getattr(stored, name, None) != getattr(config.model, name)]
        if different:
            name = different[0]
            raise CheckpointError(
                f"{folder} has {name} {getattr(stored, name, None)!r}, this run {getattr(config.model, name)!r}. Set --model.{name.replace('_', '-')} "
                "to the same, or leave --init-from out."
            )
        return folder

    def open_data(self) -> None:
        """Open training and validation data, and refuse pictures that are in both."""
        if self.config.stage.validation:
            said = self.measures.overlap(self.train_data.pictures, self.held_out.pictures, allow=self.config.allow_overlap)
            if self.world.is_main:
                log.info("validation: %s", said)
        _ = self.train_data, self.free_texts

    @cached_property
    def train_data(self) -> Captioned:
        """Training pictures and their captions."""
        return open_captioned(self.config.stage.dataset, data_root=self.config.data_root)

    @cached_property
    def held_out(self) -> Captioned:
        """Validation pictures and their captions."""
        return open_captioned(self.config.stage.validation, data_root=self.config.data_root)

    @cached_property
    def free_texts(self) -> list[str]:
        """Texts without images, each once."""
        texts: dict[str, None] = {}
        for spec in self.config.stage.distill.texts:
            texts |= dict.fromkeys(_texts_of(spec))
        return list(texts)

    @cached_property
    def _vectors(self) -> Vectors:
        config = self.config
        root = config.cache_root or config.data_root / "features"
        return Vectors(root, self.world, getattr(torch, config.stage.cache_dtype), config.stage.encode_batch_size)

    def _of(self, data: Captioned) -> PairVectors:
        return PairVectors(data, self.image_vectors(data.pictures), self.text_vectors(data.captions))

    @cached_property
    def train_vectors(self) -> PairVectors:
        """Vectors of the training data."""
        return self._of(self.train_data)

    @cached_property
    def held_out_vectors(self) -> PairVectors:
        """Vectors of the validation data."""
        return self._of(self.held_out)

    def image_vectors(self, pictures: Sequence[Picture]) -> FeatureCache:
        """Vectors of pictures by the image encoder, which is loaded only if they are not there yet."""
        encoder = self._encoder("image", self.config.model.image, self.config.model.image_source)
        return self._vectors.of_pictures(encoder, pictures)

    def text_vectors(self, texts: Sequence[str]) -> FeatureCache:
        """Vectors of texts by the text encoder, which is loaded only if they are not there yet."""
        encoder = self._encoder("text", self.config.model.text, self.config.model.text_source)
        return self._vectors.of_texts(encoder, texts, instruction=self.config.model.instruction)

    def teacher_vectors(self, texts: Sequence[str]) -> FeatureCache:
        """Vectors of texts by the teacher, which is loaded only if they are not there yet."""
        distill = self.config.stage.distill
        return self._vectors.of_texts(self._encoder("text", distill.teacher, distill.teacher_source), texts)

    def _encoder(self, side: str, name: str, source: str) -> Frozen:
        source = source_of(side, name, source)
        return Frozen(name, source, partial(build_encoder, side, name, source, dtype=self._encoder_dtype))

    @property
    def _encoder_dtype(self) -> torch.dtype:
        """Type of the encoders' weights: frozen ones are in bf16 wherever the precision says so."""
        return torch.float32 if self.config.precision == "fp32" else torch.bfloat16

    def build(self, *, precision: str, start: Path | None) -> AlignmentHeads:
        """The heads, in fp32; statistics of the vectors in those that standardize."""
        config = self.config
        heads = build_heads(config.model, distill=config.stage.distill, world=self.world, seed=config.seed)
        vectors = self.train_vectors
        for options, head, cache in (
            (config.model.image_head, heads.image_head, vectors.image),
            (config.model.text_head, heads.text_head, vectors.text),
        ):
            if options.normalize_input == "standardize":
                head.standardize_with(cache.mean, cache.std)
        for line in checkpoint.load_trained(heads, start) if start is not None else []:
            log.info("from %s: %s", start, line)
        for part in heads.PARTS:
            getattr(heads, part).requires_grad_(part in config.stage.lr.trained)
        return heads

    def stream(self, model: AlignmentHeads, world: World, plan: BatchPlan) -> Stream:
        """Pairs of cached vectors, each image once a batch."""
        stage, vectors = self.config.stage, self.train_vectors
        if self.is_looked_at:
            _ = self.held_out_vectors  # now, by all ranks: later, the main one looks at it alone
        captions = np.arange(len(vectors.data.captions))
        order = PairOrder(Captions.of(vectors.data.owners.numpy(), captions), stage.global_batch_size, self.config.seed)
        num_steps = stage.max_steps or count_batches(order, stage.epochs)
        teacher = self.teacher_vectors(vectors.data.captions) if stage.distill.teacher and stage.distill.weight else None
        free = self._free()
        caches = [vectors.image, vectors.text, *([] if teacher is None else [teacher])]
        parts = [order.digest(), *(cache.manifest.key_sha256 for cache in caches), "" if free is None else free.order.digest()]

        def batches(count: int, start: Position) -> Iterable[PairBatch]:
            pinned = world.device.type == "cuda"
            return PairLoader(vectors.image, vectors.text, order, teacher, free, world.size, world.rank, count, start, pinned)

        said = f"{len(order.captions):,} images with {len(captions):,} captions, {num_steps:,} steps of {stage.global_batch_size} pairs"
        return Stream(
            digest=hashlib.sha256(" ".join(parts).encode()).hexdigest(),
            num_steps=num_steps,
            summary=said + (f" and {free.order.batch} texts without images of {free.order.count:,}" if free else ""),
            lines=[f"teacher: {stage.distill.teacher}"] if stage.distill.teacher else [],
            batches=batches,
            sample_id=lambda i: vectors.data.pictures[int(vectors.data.owners[i])].id,
        )

    def _free(self) -> FreeTexts | None:
        stage = self.config.stage
        if not self.free_texts or not stage.distill.texts_weight:
            return None
        batch = min(stage.distill.texts_batch_size or stage.global_batch_size, len(self.free_texts) // self.world.size * self.world.size)
        order = TextOrder(len(self.free_texts), batch, self.config.seed)
        return FreeTexts(self.text_vectors(self.free_texts), self.teacher_vectors(self.free_texts), order)

    def prepare(self, model: AlignmentHeads) -> None:
        """Nothing: heads start at random."""

    def describe(self, model: AlignmentHeads) -> list[str]:
        """The table of the heads' parameters."""
        return parameter_table(model)

    def model_values(self, model: AlignmentHeads) -> dict[str, Any]:
        """The contents of `model.json`: heads alone are stored, encoders are named with their fingerprints."""
        vectors = self.train_vectors
        encoders = {"image": fingerprint_of(vectors.image), "text": fingerprint_of(vectors.text)}
        return heads_values(model, self.config.model, encoders, trained_on=[self.config.stage.dataset])

    def meter(self, *, precision: str, world: World) -> Meter:
        """What counts the FLOPs of the heads; those of the encoders were spent before the first step."""
        return meter_of(HeadFlops.of(self.config, ranks=world.size), precision=precision, world=world)

    @property
    def is_looked_at(self) -> bool:
        """True if there is validation data."""
        return bool(self.config.stage.validation)

    @torch.inference_mode()
    def look(self, model: AlignmentHeads, autocast: Callable[[], AbstractContextManager]) -> tuple[dict[str, float], list[Shown]]:
        """Retrieval on the validation data, and the contrastive loss of each image with its first caption."""
        vectors, device = self.held_out_vectors, model.scale.log_scale.device
        training = model.training
        model.eval()
        owners = vectors.data.owners
        with autocast():
            images = unit(model.image_head(vectors.image.rows(torch.arange(len(vectors.image))).to(device)))
            texts = unit(model.text_head(vectors.text.rows(torch.arange(len(vectors.text))).to(device)))
        first = Captions.of(owners.numpy(), np.arange(len(owners)))
        chosen = torch.from_numpy(first.texts[first.starts[:-1]][:LARGEST_VALIDATION])
        loss = model.loss_of(images[owners[chosen]], texts[chosen], owners[chosen].to(device))
        recalls = self.measures.retrieval(images.cpu(), texts.cpu(), owners)
        model.train(training)
        return {"validation_loss": loss} | {f"validation/{name}": value for name, value in recalls.items() if not math.isnan(value)}, []


def _texts_of(spec: str) -> list[str]:
    """The texts of a file, one a line; of `classes:<file>`, each class name in each generic template."""
    path = Path(spec.removeprefix(CLASSES))
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"--stage.distill.texts {spec}: {path} cannot be read ({error}). Name a text file with one text a line.") from error
    if not lines:
        raise DataFormatError(f"--stage.distill.texts {spec}: {path} holds no text.")
    if not spec.startswith(CLASSES):
        return lines
    return [prompt for prompts in prompts_of(lines, templates_of("generic")) for prompt in prompts]

"""What a contrastive run would need, before anything is downloaded: parameters, caches of vectors, FLOPs, training state, steps and time.

Encoders and heads are built on the meta device alone. Vectors are computed once and training sees nothing else, so the two are counted apart. Of the data
it knows what is prepared or published, and says what it assumes (`PairAssumptions`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import ImageSpec
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import TextSpec
from vlm.conf.contrastive import ContrastiveConfig
from vlm.conf.schema import BatchPlan
from vlm.data.benchmarks.captioned import open_captioned
from vlm.data.datasets import DATASETS
from vlm.data.stream.pairs import refuse_batch, steps_of
from vlm.errors import VLMError
from vlm.models.head_flops import HeadFlops, PairWork, heads_skeleton
from vlm.training.contrastive import Contrastive, Measures
from vlm.training.dry_run import GIB, assumed_device, count_parameters, parameter_lines, table
from vlm.training.memory import ADAM_AVERAGES
from vlm.training.peak import Peak
from vlm.types import World

TERA, MIB = 1e12, 2**20


@dataclass(frozen=True)
class Encoder:
    """An encoder, and what it is run on.

    Attributes:
        name: Its name.
        parameters: Its parameters.
        width: Width of its vectors.
        items: Pictures or texts that are encoded; None if nobody says.
        flops: FLOPs of one of them.
    """

    name: str
    parameters: int
    width: int
    items: int | None
    flops: float


@dataclass(frozen=True)
class PairDryRun:
    """What a contrastive run would need.

    Attributes:
        config: The run, its teacher by name.
        precision: Its precision, resolved.
        plan: How a global batch is cut.
        encoders: The frozen encoders by what they encode.
        heads: Parameters of each part of the heads, and how many of them are trained.
        state: Bytes of the heads in training, by kind; each device holds all of them.
        useful: FLOPs of an optimizer step over all devices.
        peak: Peak of each device.
        num_images: Training pictures; None if nobody says.
        num_captions: Their captions.
        num_texts: Texts without images in a batch.
    """

    config: ContrastiveConfig
    precision: str
    plan: BatchPlan
    encoders: Mapping[str, Encoder]
    heads: Mapping[str, tuple[int, int]]
    state: Mapping[str, int]
    useful: float
    peak: Peak
    num_images: int | None
    num_captions: int | None
    num_texts: int

    @property
    def steps_per_epoch(self) -> int | None:
        """Full batches of an epoch, in which each image is shown once."""
        return None if self.num_images is None else self.num_images // self.config.stage.global_batch_size

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run."""
        stage, each = self.config.stage, self.steps_per_epoch
        if stage.max_steps is not None or each is None:
            return stage.max_steps
        return steps_of(each, stage.epochs)

    def bytes_of(self, encoder: Encoder) -> int | None:
        """Size of the cache of an encoder's vectors."""
        return None if encoder.items is None else encoder.items * encoder.width * getattr(torch, self.config.stage.cache_dtype).itemsize

    def seconds(self, flops: float) -> float:
        """Time of so many FLOPs at the assumed share of the peak of all devices."""
        return flops / (self.config.assume.mfu * self.peak.flops_per_second * self.plan.world)


def dry_run(config: ContrastiveConfig) -> PairDryRun:
    """Estimate a run.

    Raises:
        VLMError: If names are unknown, encoders and heads do not fit, the batch cannot be cut, or is larger than the data.
    """
    size = config.assume.num_devices or int(os.environ.get("WORLD_SIZE", "1"))
    world = World(rank=0, size=size, device=torch.device("cpu"))
    objective = Contrastive(config, Measures(retrieval=_unused, overlap=_unused), world)
    config = objective.resolved()
    objective = Contrastive(config, objective.measures, world)
    plan = objective.plan(world)
    precision, peak = assumed_device(config)
    num_images, num_captions = data_size(config)
    if num_images is not None:
        refuse_batch(config.stage.global_batch_size, num_images)
    free = len(objective.free_texts)
    num_texts = min(config.stage.distill.texts_batch_size or config.stage.global_batch_size, free) if config.stage.distill.texts_weight else 0
    heads = heads_skeleton(config)
    return PairDryRun(
        config=config,
        precision=precision,
        plan=plan,
        encoders=_encoders(config, num_images, num_captions, free),
        heads={part: count_parameters(getattr(heads, part)) for part in heads.PARTS},
        state=_state(heads),
        useful=HeadFlops.of(config).spent([PairWork(config.stage.global_batch_size, num_texts)]).useful,
        peak=peak,
        num_images=num_images,
        num_captions=num_captions,
        num_texts=num_texts,
    )


def _unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("A dry run measures nothing.")


def data_size(config: ContrastiveConfig) -> tuple[int | None, int | None]:
    """Training pictures and captions: assumed, of the data if it is here, or as published; None if nobody says."""
    assume, name = config.assume, config.stage.dataset
    if assume.num_images is not None:
        return assume.num_images, round(assume.num_images * assume.captions_per_image)
    try:
        data = open_captioned(name, data_root=config.data_root)
        return len(data.pictures), len(data.captions)
    except VLMError:
        base, _, split = name.partition("@")
    if base not in DATASETS or split not in ("", DATASETS[base].splits[0]):
        return None, None
    spec = DATASETS[base]
    return spec.num_images or None, spec.num_samples or None


def _encoders(config: ContrastiveConfig, num_images: int | None, num_captions: int | None, free: int) -> dict[str, Encoder]:
    distill = config.stage.distill
    texts = None if num_captions is None else num_captions + free
    tokens = config.assume.text_tokens
    encoders = {
        "image": image_cost(config.model.image, num_images),
        "text": text_cost(config.model.text, texts, tokens=tokens),
    }
    if distill.teacher:
        taught = free if texts is not None and not distill.weight else texts
        encoders["teacher"] = text_cost(distill.teacher, taught, tokens=tokens)
    return encoders


def image_cost(name: str, items: int | None) -> Encoder:
    """An image encoder and the FLOPs of a picture.

    Args:
        name: Its name.
        items: Pictures.
    """
    spec: ImageSpec = IMAGE[name]
    with torch.device("meta"):
        encoder = spec.build(spec, Load(source=None)).eval().requires_grad_(False)
    pixels = torch.empty(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8, device="meta")
    return Encoder(name, count_parameters(encoder)[0], spec.width, items, _flops(encoder, pixels))


def text_cost(name: str, items: int | None, *, tokens: int) -> Encoder:
    """A text encoder and the FLOPs of a text; its tokenizer, which may have to be fetched, is not made.

    Args:
        name: Its name.
        items: Texts.
        tokens: Tokens of a text, where texts are not padded to one length.
    """
    spec: TextSpec = TEXT[name]
    with torch.device("meta"):
        tower = spec.build(spec, Load(source=None)).eval().requires_grad_(False)
    length = spec.max_length if spec.reading is None else min(tokens, spec.max_length)
    return Encoder(name, count_parameters(tower)[0], spec.width, items, _flops(tower, torch.zeros(1, length, dtype=torch.int64, device="meta")))


def _flops(module: torch.nn.Module, example: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        module(example)
    return float(counter.get_total_flops())


def _state(heads: torch.nn.Module) -> dict[str, int]:
    weights = sum(tensor.nbytes for tensor in [*heads.parameters(), *heads.buffers()])
    trained = sum(weight.nbytes for weight in heads.parameters() if weight.requires_grad)
    return {"weights": weights, "gradients": trained, "optimizer": ADAM_AVERAGES * trained}


def describe(run: PairDryRun) -> list[str]:
    """The estimate as lines of text."""
    return [*_parts(run), "", *_data(run), "", *_caches(run), "", *_training(run)]


def _parts(run: PairDryRun) -> list[str]:
    model = run.config.model
    kinds = {"image_head": model.image_head.kind, "text_head": model.text_head.kind, "scale": model.loss}
    encoders = {f"{side} encoder" if side != "teacher" else side: (encoder.name, encoder.parameters, 0) for side, encoder in run.encoders.items()}
    return parameter_lines(run.config.run_id, encoders | {part: (kinds[part], *counts) for part, counts in run.heads.items()})


def _data(run: PairDryRun) -> list[str]:
    stage, plan = run.config.stage, run.plan
    texts = f" and {run.num_texts:,} texts without images" if run.num_texts else ""
    if run.num_images is None:
        size = f"Data: unknown, because the size of {stage.dataset!r} is not; prepare it, or set --assume.num-images."
    else:
        size = f"Data: {run.num_images:,} images with {run.num_captions:,} captions of {run.config.assume.text_tokens} tokens (assumed, --assume.text-tokens)."
    return [
        size,
        f"Global batch: {stage.global_batch_size:,} pairs{texts} = {plan.world} device(s) x {plan.per_device:,}, never cut into micro-batches.",
    ]


def _caches(run: PairDryRun) -> list[str]:
    rows, total, whole = [], 0.0, 0
    for side, encoder in run.encoders.items():
        size = run.bytes_of(encoder)
        flops = None if encoder.items is None else encoder.items * encoder.flops
        total, whole = total + (flops or 0.0), whole + (size or 0)
        known = ["unknown"] * 3 if size is None or flops is None else [f"{encoder.items:,}", f"{size / GIB:.3f}", f"{flops / TERA:,.4g}"]
        rows.append([side, known[0], f"{encoder.width:,}", known[1], f"{encoder.flops / 1e9:,.4g}", known[2]])
    lines = [
        f"Vectors, computed once and kept in {run.config.stage.cache_dtype}; equal texts are computed once, validation data comes on top:",
        *table(["of", "items", "width", "GiB", "GFLOP each", "TFLOP"], rows),
    ]
    if any(encoder.items is None for encoder in run.encoders.values()):
        return lines
    return [
        *lines,
        f"All: {whole / GIB:.3f} GiB, {total / TERA:,.4g} TFLOP, {_time(run.seconds(total))} {_at(run)}; reading pictures may take longer.",
    ]


def _training(run: PairDryRun) -> list[str]:
    stage, state = run.config.stage, run.state
    rows = [[kind, f"{size / MIB:,.1f}"] for kind, size in [*state.items(), ("total", sum(state.values()))]]
    lines = ["Training state of the heads on each device in MiB, in fp32:", *table(["kind", "MiB"], rows), ""]
    step = f"{run.useful / TERA:,.4g} TFLOP a step"
    if run.num_steps is None:
        return [*lines, f"Steps: unknown. {step}, {run.seconds(run.useful):.3g} s {_at(run)}."]
    each = run.steps_per_epoch
    epoch = "" if each is None else f", {each * run.useful / TERA:,.4g} TFLOP an epoch of {each:,} steps"
    passes = "" if stage.max_steps is not None else f": {stage.epochs:g} x {each:,}"
    time = _time(run.num_steps * run.seconds(run.useful))
    return [
        *lines,
        f"Steps: {run.num_steps:,}{passes}.",
        f"Training: {step}{epoch}; {time} for all steps {_at(run)}; small products reach less of it.",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _at(run: PairDryRun) -> str:
    return f"at {run.config.assume.mfu:.0%} (--assume.mfu) of {run.peak.flops_per_second / TERA:,.4g} TFLOP/s a device, {run.peak.origin}"

"""What a run would need, before anything is downloaded: parameters, tokens, FLOPs, memory, steps and time. Builds the model on the meta device alone.

It knows nothing of the data but its published size, and says what it assumes (`AssumeConfig`).
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

from vlm.conf.schema import BatchPlan, RunConfig, StageConfig, TrainConfig
from vlm.data.datasets import DATASETS
from vlm.data.reader import open_dataset
from vlm.data.stream.mixture import draws_an_epoch, parse_mixture
from vlm.distributed.launch import choose_precision
from vlm.distributed.placement import Placement
from vlm.errors import ConfigError, VLMError
from vlm.models.build import skeleton
from vlm.models.flops import KINDS, FlopModel, Work
from vlm.models.flops import PARTS as COUNTED_PARTS
from vlm.models.trace import Shape, trace
from vlm.models.vision_language import PARTS, VisionLanguageModel
from vlm.training.memory import Memory, memory_of
from vlm.training.peak import Peak, named_peak, peak_of
from vlm.training.start import freeze_unused
from vlm.types import World

DEFAULT_DEVICE = "H100"
DEVICES_PER_NODE = 8  # where nobody says otherwise
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """What a row of a batch is taken to hold.

    Attributes:
        samples: Conversations, each with one picture; more than one where rows are packed.
        image_tokens: Tokens of each picture.
        text_tokens: Tokens of each text, all labelled.
    """

    samples: int
    image_tokens: int
    text_tokens: int

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True)
class DryRun:
    """What a run would need.

    Attributes:
        config: The run.
        precision: Its precision, resolved.
        parameters: Parameters of each part, and how many of them are trained.
        plan: How a global batch is cut.
        row: What a row is taken to hold.
        flops: FLOPs of an optimizer step over all devices, by part and kind.
        useful: Those of them that tokens and pictures need.
        memory: Bytes of each device.
        shards: Devices that hold a copy of the weights together.
        peak: Peak of each device.
        num_samples: Conversations of an epoch; None if nobody says.
        num_steps: Optimizer steps; None if they depend on an unknown number of samples.
    """

    config: TrainConfig
    precision: str
    parameters: dict[str, tuple[int, int]]
    plan: BatchPlan
    row: Row
    flops: dict[tuple[str, str], float]
    useful: float
    memory: Memory
    shards: int
    peak: Peak
    num_samples: int | None
    num_steps: int | None

    @property
    def seconds_per_step(self) -> float:
        """Time of an optimizer step at the assumed share of the peak."""
        return self.useful / (self.config.assume.mfu * self.peak.flops_per_second * self.plan.world)


def dry_run(config: TrainConfig) -> DryRun:
    """Estimate a run.

    Raises:
        VLMError: If names are unknown, parts do not fit, the batch or the devices cannot be cut, or a picture has more tokens than the context.
    """
    assume, stage = config.assume, config.stage
    plan = BatchPlan.of(stage, world=assume.num_devices or int(os.environ.get("WORLD_SIZE", "1")))
    precision, peak = assumed_device(config)
    shards = _shards(config, plan.world)
    model = skeleton(config.model, precision=precision, trained=stage.lr.trained)
    freeze_unused(model)
    row = _row(config, model)
    recomputed = stage.gradient_checkpointing
    micro_batch = Shape(plan.per_device, tiles=row.samples, text=row.samples * row.text_tokens, labels=row.samples * row.text_tokens)
    traced = trace(model, micro_batch, autocast=precision == "bf16-mixed")
    flops, work = FlopModel.of(model, recomputed=recomputed), _work(row, stage.global_batch_size)
    num_samples = published_samples(config)
    return DryRun(
        config=config,
        precision=precision,
        parameters={part: count_parameters(getattr(model, part)) for part in PARTS},
        plan=plan,
        row=row,
        flops=flops.count(work),
        useful=flops.useful(work),
        memory=memory_of(model, traced.kept, num_devices=plan.world, recomputed=recomputed, shards=shards),
        shards=shards,
        peak=peak,
        num_samples=num_samples,
        num_steps=_steps(stage, num_samples, samples_per_step=stage.global_batch_size * row.samples),
    )


def _shards(config: TrainConfig, num_devices: int) -> int:
    """Devices that hold a copy of the weights together."""
    world = World(rank=0, size=num_devices, device=torch.device("cpu"), ranks_per_node=min(num_devices, DEVICES_PER_NODE))
    return Placement.of(config.parallel.strategy, world, shard_size=config.parallel.shard_size).shards if num_devices > 1 else 1


def assumed_device(config: RunConfig) -> tuple[str, Peak]:
    """Precision and peak on the device that the run is taken to use."""
    name = config.assume.device
    if not name and (config.device == "cpu" or torch.cuda.is_available()):
        here = torch.device("cpu" if config.device == "cpu" else "cuda")
        precision = choose_precision(config.precision, here)
        return precision, peak_of(here, torch.float32 if precision == "fp32" else torch.bfloat16)
    return "bf16-mixed" if config.precision == "auto" else config.precision, named_peak(name or DEFAULT_DEVICE)


def _row(config: TrainConfig, model: VisionLanguageModel) -> Row:
    stage, image = config.stage, model.tokens_per_tile
    longest = min(stage.max_length or model.language.max_length, stage.pack_length or model.language.max_length)
    if image >= longest:
        raise ConfigError(f"A picture has {image} tokens, and a row holds {longest}. Choose a connector that makes fewer, or a longer row.")
    text = min(config.assume.text_tokens, longest - image)
    return Row(max(1, (stage.pack_length or 0) // (image + text)), image, text)


def _work(row: Row, rows: int) -> Work:
    samples = rows * row.samples
    documents = ((row.length, 0),) * samples
    return Work(tiles=samples, slots=samples * row.length, padding=0, labels=samples * row.text_tokens, documents=documents, samples=samples)


def count_parameters(module: torch.nn.Module) -> tuple[int, int]:
    """Parameters, and how many of them are trained."""
    weights = list(module.parameters())
    return sum(weight.numel() for weight in weights), sum(weight.numel() for weight in weights if weight.requires_grad)


def published_samples(config: TrainConfig) -> int | None:
    """Conversations of an epoch: of the prepared data if it is here, else as published; None if nobody says."""
    try:
        samples = open_dataset(config.stage.dataset, data_root=config.data_root)
        return sum(draws_an_epoch(samples.entries, samples.sizes))
    except VLMError:
        entries = parse_mixture(config.stage.dataset)
    sizes = [_published(entry.name) for entry in entries]
    return sum(draws_an_epoch(entries, sizes)) if all(sizes) else None


def _published(name: str) -> int:
    """Published conversations of a dataset, or the sum over the parts of a mix; 0 if nobody says."""
    base, _, split = name.partition("@")
    if base not in DATASETS or split not in ("", DATASETS[base].splits[0]):
        return 0
    spec = DATASETS[base]
    sizes = [_published(part) for part in spec.parts]
    return spec.num_samples or (sum(sizes) if all(sizes) else 0)


def _steps(stage: StageConfig, num_samples: int | None, *, samples_per_step: int) -> int | None:
    if stage.max_steps is not None or num_samples is None:
        return stage.max_steps
    return max(1, math.ceil(num_samples * stage.epochs / samples_per_step))


def describe(run: DryRun) -> list[str]:
    """The estimate as lines of text."""
    return [*_parts_lines(run), "", *_batch_lines(run), "", *_flops_lines(run), "", *_memory_lines(run), "", *_time_lines(run)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first one to the left and the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return [
        "  " + "  ".join([line[0].ljust(widths[0]), *(word.rjust(w) for word, w in zip(line[1:], widths[1:], strict=True))])
        for line in [header, *rows]
    ]


def _parts_lines(run: DryRun) -> list[str]:
    model = run.config.model
    return parameter_lines(run.config.run_id, {part: (getattr(model, part), *counts) for part, counts in run.parameters.items()})


def parameter_lines(run_id: str, parts: Mapping[str, tuple[str, int, int]]) -> list[str]:
    """The parts of a run: the name of each, its parameters, and how many of them are trained; with their sum."""
    rows = [[part, name, f"{n:,}", f"{trained:,}", f"{n - trained:,}"] for part, (name, n, trained) in parts.items()]
    total, trained = sum(n for _, n, _ in parts.values()), sum(n for _, _, n in parts.values())
    rows.append(["total", "", f"{total:,}", f"{trained:,}", f"{total - trained:,}"])
    return [f"{run_id}: dry run, nothing is trained", *table(["part", "name", "parameters", "trained", "frozen"], rows)]


def _batch_lines(run: DryRun) -> list[str]:
    row, plan, stage = run.row, run.plan, run.config.stage
    packed = f" Rows of {stage.pack_length} tokens hold {row.samples} samples." if stage.pack_length else ""
    return [
        f"Tokens a sample: {row.length} = {row.image_tokens} of a picture + {row.text_tokens} of text, all labelled"
        f" (assumed, --assume.text-tokens).{packed}",
        f"Global batch: {stage.global_batch_size} rows = {plan.world} device(s) x {plan.per_device} x {plan.accumulation} micro-batch(es).",
    ]


def _flops_lines(run: DryRun) -> list[str]:
    def cells(values: Sequence[float]) -> list[str]:
        return [f"{value / 1e12:,.4g}" for value in [*values, sum(values)]]

    rows = [[part, *cells([run.flops.get((part, kind), 0.0) for kind in KINDS])] for part in COUNTED_PARTS]
    rows.append(["total", *cells([sum(run.flops.get((part, kind), 0.0) for part in COUNTED_PARTS) for kind in KINDS])])
    samples = run.config.stage.global_batch_size * run.row.samples
    heading = f"TFLOP a step: {run.useful / 1e12:,.4g} needed, {run.useful / samples / 1e12:.4g} a sample; computed, by part:"
    return [heading, *table(["part", *(kind.replace("_", " ") for kind in KINDS), "all"], rows)]


def _memory_lines(run: DryRun) -> list[str]:
    rows = [[kind, f"{size / GIB:.2f}"] for kind, size in vars(run.memory).items()]
    checkpointed = ", ".join(run.config.stage.gradient_checkpointing) or "none"
    held = "every device with all weights" if run.shards == 1 else f"weights shared by {run.shards} devices"
    quantized = [f"{tower} unquantized" for tower, lora in vars(run.config.model.lora).items() if lora.rank and lora.quantize != "none"]
    held = ", ".join([held, *quantized])
    return [
        f"Memory of each device in GiB: {run.precision}, {held}, gradient checkpointing: {checkpointed}; kernels' buffers come on top:",
        *table(["kind", "GiB"], [*rows, ["total", f"{run.memory.total / GIB:.2f}"]]),
    ]


def _time_lines(run: DryRun) -> list[str]:
    stage, seconds = run.config.stage, run.seconds_per_step
    at = f"at {run.config.assume.mfu:.0%} (--assume.mfu) of {run.peak.flops_per_second / 1e12:,.4g} TFLOP/s a device, {run.peak.origin}"
    samples = stage.global_batch_size * run.row.samples
    each = f"{seconds:.3g} s a step, {samples / seconds:,.4g} samples/s, {at}"
    if run.num_steps is None:
        return [f"Steps: unknown, because the size of {stage.dataset!r} is not; prepare it, or set --stage.max-steps.", f"Time: {each}."]
    passes = "" if stage.max_steps is not None else f": {stage.epochs:g} x {run.num_samples:,} samples of {stage.dataset}"
    return [f"Steps: {run.num_steps:,}{passes}.", f"Time: {timedelta(seconds=round(run.num_steps * seconds))} = {run.num_steps:,} steps of {each}."]

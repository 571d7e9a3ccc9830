"""Every setting of a run, once, as frozen dataclasses; the docstring under a field is its help text, with unit and range.

Imports no torch and resolves no name: `vlm.models.build` does that after parsing. Values out of range are refused where they are set; values
without effect are named by `vlm.conf.idle`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.errors import ConfigError

FORMAT_VERSION = 1  # of config.json; raised when a stored config needs a migration


@dataclass(frozen=True)
class LoRAConfig:
    """A low-rank adapter on one tower (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 0
    """Rank of the adapter's two matrices; 0 means no adapter. With an adapter, the tower's own weights stay frozen."""
    alpha: float = 16.0
    """Scale, positive: the adapter's output is multiplied by alpha / rank, or alpha / sqrt(rank) with rslora."""
    dropout: float = 0.0
    """Probability of dropping an input element of the adapter, 0 to 1."""
    targets: str = "family"
    """Which linear layers get an adapter: `family` (the family's own list), `all-linear`, or a regular expression on module names."""
    kind: Literal["lora", "rslora", "dora"] = "lora"
    """lora; rslora, whose scale keeps large ranks learning (arXiv:2312.03732); dora, which trains each row's length too, at more time a step (arXiv:2402.09353)."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """How the tower's own linear layers are stored under the adapter, by bitsandbytes: nf4 is QLoRA's 4 bits (arXiv:2305.14314), int8 is LLM.int8 (arXiv:2208.07339)."""

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA needs rank >= 0 and 0 <= dropout < 1; got rank {self.rank}, dropout {self.dropout}.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"LoRA needs a positive, finite alpha; got {self.alpha}: the adapter would change nothing.")
        if (self.kind, self.quantize) == ("dora", "int8"):
            raise ConfigError(
                "LoRA's kind dora needs the weights themselves, which bitsandbytes does not give of int8. Set quantize nf4, or another kind."
            )
        if self.quantize != "none" and self.rank == 0:
            raise ConfigError(
                f"LoRA's quantize is {self.quantize}, but its rank is 0: quantized weights are not trained. Set a rank, or quantize none."
            )


@dataclass(frozen=True)
class LoRATowers:
    """One adapter setting a tower."""

    language: LoRAConfig = LoRAConfig()
    """Adapter of the language model."""
    vision: LoRAConfig = LoRAConfig()
    """Adapter of the vision backbone: of those of its layers that patch features come from; of every tower of a fused one."""


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Vision backbone, connector and language model, by name."""

    vision: str
    """Vision backbone (`vlm list vision`)."""
    language: str
    """Language model (`vlm list language`)."""
    connector: str = "mlp2x-gelu"
    """Connector (`vlm list connectors`)."""
    name: str = ""
    """What run folders call this composition; empty: the names of its parts."""
    vision_source: str = ""
    """Folder or hub id to load the vision backbone from, instead of the registry's; empty: the registry's."""
    language_source: str = ""
    """Folder or hub id to load the language model from, instead of the registry's; empty: the registry's."""
    feature_layer: int | None = None
    """Vision layer whose output the connector sees, as an index into the hidden states: -2 is the last but one. Default: the registry's."""
    resize: Literal["squash", "crop", "crop-even", "pad", "letterbox"] = "squash"
    """How a picture becomes square: squash ignores the aspect ratio, crop cuts, pad fills with the mean color, crop-even and letterbox as Prismatic."""
    connector_init: Literal["random", "ridge"] = "random"
    """Start of the connector: random, or ridge regression from pooled features to the mean embedding of the answers (training data is read once)."""
    template: str = ""
    """Chat template (`vlm list templates`); empty: the language model's own."""
    lora: LoRATowers = LoRATowers()
    """Low-rank adapters."""

    def __post_init__(self) -> None:
        if self.name:
            check_folder_word("model", self.name)

    @property
    def run_name(self) -> str:
        """`name`, or the names of the parts, safe as a folder name."""
        return self.name or f"{self.vision}-{self.connector}-{self.language}".replace(":", "-").replace("/", "-")


def check_at_least(least: int, group: str, **values: float | int | None) -> None:
    """Refuse settings of a group that are below a number.

    Raises:
        ConfigError: With the first one.
    """
    for name, value in values.items():
        if value is not None and not value >= least:  # so that nan is refused
            raise ConfigError(f"--{group}.{name.replace('_', '-')} is {value}; at least {least}.")


def check_folder_word(group: str, name: str) -> None:
    """Refuse a name that cannot be part of a folder's.

    Raises:
        ConfigError: With the name.
    """
    if not name or set(name) & set("/\\+"):
        raise ConfigError(f"--{group}.name is {name!r}; it becomes part of a folder's name, so it needs letters and neither / nor \\ nor +.")


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each part; None freezes the part."""

    vision: float | None = None
    """Vision backbone; None freezes it."""
    connector: float | None = None
    """Connector; None freezes it."""
    language: float | None = None
    """Language model, or its adapter if it has one; None freezes it."""

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(f"--stage.lr.{name} is {rate}; a learning rate is positive and finite, and None freezes the part.")
        if not self.trained:
            raise ConfigError("All learning rates are None, so nothing would be trained. Set at least one of --stage.lr.{vision,connector,language}.")

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parts with a rate."""
        return tuple(name for name, rate in vars(self).items() if rate is not None)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every stage of training says, whatever it trains: data, length, rates over time."""

    name: str
    """What run folders call this stage: align, finetune, or a word of yours."""
    dataset: str
    """Dataset below --data-root (`vlm preprocess`), or a path; with commas a mixture: `a,b` each once an epoch, `a:0.7,b:0.3` shares, `a:2x,b` passes."""
    lr: Any
    """Peak learning rates, by part."""
    validation: str = ""
    """Dataset of the validation pictures and loss, spelled like --stage.dataset; empty: none."""
    global_batch_size: int = 128
    """Samples an optimizer step, over all devices and micro-batches; rows, where --stage.pack-length or --stage.share-images puts several into one."""
    epochs: float = 1.0
    """Passes over the data, may be a fraction; ignored where --stage.max-steps is set."""
    max_steps: int | None = None
    """Optimizer steps; None: as --stage.epochs says."""
    max_time: float | None = None
    """Hours of training, resumed runs counted together; then a checkpoint is written and the run ends, whatever the schedule says. None: no limit."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the rate rises linearly from 0, 0 to 1."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: cosine to the final rate; wsd: flat, then linear to the final rate over the last part (--stage.decay-ratio); constant."""
    decay_ratio: float = 0.7
    """Share of the steps in which wsd falls, 0 to 1."""
    final_lr_ratio: float = 0.0
    """Final rate as a share of the peak rate, 0 to 1."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; never applied to biases and other one-dimensional weights."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants, each from 0 to below 1."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None: no clipping."""

    def __post_init__(self) -> None:
        check_folder_word("stage", self.name)
        check_at_least(1, "stage", global_batch_size=self.global_batch_size, max_steps=self.max_steps)
        check_at_least(0, "stage", weight_decay=self.weight_decay)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"--stage.clip-norm is {self.clip_norm}; it must be positive, and None means no clipping.")
        if self.max_time is not None and not 0 < self.max_time < math.inf:
            raise ConfigError(f"--stage.max-time is {self.max_time}; it is a positive number of hours, or None.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--stage.betas is {self.betas}; each must be at least 0 and below 1.")
        if self.max_steps is None and not 0 < self.epochs < math.inf:
            raise ConfigError(f"--stage.epochs is {self.epochs}; it must be positive and finite, or --stage.max-steps must be set.")
        for name in ("warmup_ratio", "decay_ratio", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--stage.{name.replace('_', '-')} is {getattr(self, name)}; it must lie between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Schedule):
    """One stage of training a vision-language model: which parts learn, from what, for how long."""

    lr: LearningRates
    """Peak learning rates."""
    mixture_by: Literal["samples", "tokens"] = "samples"
    """What the shares of --stage.dataset count: conversations, or their tokens."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A faulty row in data of your own that is given by path: an error, or left out and counted."""
    pack_length: int | None = None
    """Tokens a row: conversations are packed into rows of that many, none sees another, and batch sizes count rows. None: one conversation a row."""
    group_by_length: bool = False
    """Steps of one modality where possible, from long to short, for less padding; for use without --stage.pack-length."""
    share_images: bool = False
    """Conversations about the same pictures stand in one row and share the pictures' tokens; each sees the pictures and itself alone."""
    reduced_jpeg: bool = False
    """Decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is still above the model's: faster, and pixels differ slightly."""
    template: str = ""
    """Chat template of this stage; empty: the model's."""
    per_device_batch_size: int = 16
    """Samples (or rows) a micro-batch on one device."""
    max_length: int | None = None
    """Longest sequence in tokens, image tokens included; None: the language model's context."""
    num_workers: int = 2
    """Processes that read and decode data, for each device; 0: the training process does it."""
    gradient_checkpointing: tuple[Literal["vision", "language"], ...] = ()
    """Parts whose activations are computed again in the backward pass: less memory, about a third more time. Of a frozen vision backbone none are kept anyway."""
    compile: tuple[Literal["vision", "language"], ...] = ()
    """Parts whose layers go through torch.compile: a minute at the start of a run, less traffic to memory in each step. Results differ by rounding."""

    def __post_init__(self) -> None:
        if self.global_batch_size < 1 or self.per_device_batch_size < 1:
            raise ConfigError(
                f"Batch sizes are at least 1; got --stage.global-batch-size {self.global_batch_size}, --stage.per-device-batch-size {self.per_device_batch_size}."
            )
        super().__post_init__()
        check_at_least(1, "stage", max_length=self.max_length, pack_length=self.pack_length)
        check_at_least(0, "stage", num_workers=self.num_workers)


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go."""

    trackers: tuple[Literal["jsonl", "wandb", "tensorboard"], ...] = ("jsonl",)
    """jsonl: metrics.jsonl in the run folder, which `vlm report` reads; wandb: Weights & Biases (WANDB_MODE=offline works without a network); tensorboard."""
    wandb_project: str = "vlm"
    """Project in Weights & Biases."""
    wandb_entity: str | None = None
    """Team or user in Weights & Biases; None: your default."""
    log_every: int = 1
    """Optimizer steps between two log lines."""
    sample_every: int | None = None
    """Optimizer steps between two looks at validation pictures with generated text; None: at the end only."""
    num_samples: int = 8
    """Validation pictures a look."""
    generation_metrics: bool = False
    """Compare the answers at each look with their references: validation/exact_match and validation/token_f1, 0 to 1. Answers are cut at 32 tokens."""

    def __post_init__(self) -> None:
        check_at_least(1, "tracking", log_every=self.log_every, sample_every=self.sample_every, num_samples=self.num_samples)


@dataclass(frozen=True)
class DeviceAssumptions:
    """What --dry-run takes for granted of the devices, because it runs on none."""

    mfu: float = 0.4
    """Share of the device's peak that the run will achieve, above 0 to 1; every step of a run logs its own as `mfu`."""
    device: str = ""
    """GPU that the run will use: h100, a100, l4, rtx-4090 ...; empty: this machine's, or an H100 where there is none and --device is not cpu."""
    num_devices: int | None = None
    """Devices that the run will use; None: as many as torchrun has started processes."""

    def __post_init__(self) -> None:
        check_at_least(1, "assume", num_devices=self.num_devices)
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--assume.mfu is {self.mfu}; it must be above 0 and at most 1.")


@dataclass(frozen=True)
class AssumeConfig(DeviceAssumptions):
    """What --dry-run takes for granted, because it looks at no data and runs on no device."""

    text_tokens: int = 150
    """Tokens of text a sample, all of them labelled; 150 is about the median of LLaVA-1.5's conversations, its captions have 40."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, "assume", text_tokens=self.text_tokens)


@dataclass(frozen=True)
class ParallelConfig:
    """How the model lies on several devices; one process holds all of it."""

    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """ddp: each device holds the model. fsdp: each holds a share of every weight. hsdp: as fsdp within groups, as ddp between them. auto: ddp."""
    shard_size: int | None = None
    """Devices of a group under hsdp, which hold one copy of the model together; None: those of a node."""
    reshard_after_forward: bool = True
    """Under fsdp and hsdp, free gathered weights after the forward pass and gather them again in the backward pass: less memory, more traffic."""

    def __post_init__(self) -> None:
        check_at_least(1, "parallel", shard_size=self.shard_size)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run says, whatever it trains: where it writes, on what it runs, how it goes on."""

    model: Any
    """What is trained."""
    stage: Any
    """The stage of training."""
    tracking: TrackingConfig = TrackingConfig()
    """Metrics."""
    parallel: ParallelConfig = ParallelConfig()
    """Several devices."""
    init_from: Path | None = None
    """Run folder (or a unique prefix of one below --run-root) whose trained weights this run starts from."""
    seed: int = 7
    """Seed of everything random: data order, initial weights, dropout."""
    device: str = "auto"
    """auto (CUDA, else Apple's mps, else cpu), cuda, mps or cpu."""
    precision: Literal["auto", "fp32", "bf16-mixed", "bf16"] = "auto"
    """fp32; bf16-mixed: frozen weights in bf16, trained ones in fp32, autocast; bf16: all weights in bf16. auto: bf16-mixed where the device is fast at it."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    checkpoint_every: int | None = None
    """Optimizer steps between two checkpoints; None: one at the end."""
    keep_last: int | None = None
    """Latest checkpoints that stay on disk; None: all."""
    keep_every: int | None = None
    """With --keep-last: checkpoints at multiples of so many steps stay as well."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not a number ends the run, or changes no weight and is left out; both are written to incidents.jsonl."""
    resume: str = ""
    """`auto`: go on from the run folder's latest whole checkpoint, or start if there is none; or a checkpoint folder of this run. Empty: start."""
    overwrite: bool = False
    """Delete the run folder if it exists; without it (or --resume), an existing one is refused."""
    dry_run: bool = False
    """Train nothing: print parameters, tokens, FLOPs, memory, steps and expected time of the run. Needs neither weights nor data nor a network."""
    assume: DeviceAssumptions = DeviceAssumptions()
    """What --dry-run takes for granted."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; at least 1, or None.")
        if self.resume and self.overwrite:
            raise ConfigError("--resume goes on with a run and --overwrite deletes it. Give one of them.")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; at least 0.")

    @property
    def run_id(self) -> str:
        """Name of the run folder: model, stage and seed."""
        return f"{self.model.run_name}+{self.stage.name}+x{self.seed}"

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.run_root / self.run_id


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One complete run that trains a vision-language model."""

    model: VisionLanguageConfig
    """The composition."""
    stage: StageConfig
    """The stage of training."""
    assume: AssumeConfig = AssumeConfig()
    """What --dry-run takes for granted."""


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `world * per_device * accumulation == global`."""

    world: int
    per_device: int
    accumulation: int

    @classmethod
    def of(cls, stage: StageConfig, *, world: int) -> "BatchPlan":
        """Cut the stage's global batch for `world` devices.

        Raises:
            ConfigError: If it does not divide; the nearest global batch sizes that do are named.
        """
        unit = stage.per_device_batch_size * world
        size = stage.global_batch_size
        if size % unit:
            fits = sorted({max(unit, size // unit * unit), -(-size // unit) * unit})
            fitting = [d for d in range(1, size // world + 1) if size % (d * world) == 0]
            nearest = min(fitting, key=lambda d: abs(d - stage.per_device_batch_size), default=None)
            other = f", or --stage.per-device-batch-size {nearest}" if nearest else ""
            raise ConfigError(
                f"--stage.global-batch-size {size} is not a multiple of --stage.per-device-batch-size {stage.per_device_batch_size} x {world} device(s) = {unit}. "
                f"Nearest that fit: --stage.global-batch-size {' or '.join(map(str, fits))}{other}."
            )
        return cls(world=world, per_device=stage.per_device_batch_size, accumulation=size // unit)

    def steps(self, num_samples: int) -> int:
        """Steps that cover a number of samples."""
        return -(-num_samples // (self.world * self.per_device * self.accumulation))

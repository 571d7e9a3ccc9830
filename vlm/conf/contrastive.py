"""Every setting of a contrastive run, once: a head (or two) between frozen encoders of images and texts, and how it is trained. See `vlm.conf.schema`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm.conf.schema import DeviceAssumptions, RunConfig, Schedule, check_at_least, check_folder_word
from vlm.errors import ConfigError


@dataclass(frozen=True)
class HeadConfig:
    """A head that carries an encoder's vectors into the joint space; which kinds there are and what they use, `vlm.models.alignment_head` knows and checks."""

    kind: Literal["identity", "linear", "ape", "residual", "glu"] = "identity"
    """identity: none; linear; ape: APD's linear layers with ReLU (arXiv:2210.03927); residual: LLM2CLIP's (arXiv:2411.04997); glu: SAIL's (arXiv:2412.04616)."""
    hidden_width: int | None = None
    """Width of the hidden layers; None: the kind's multiple of the input width."""
    num_layers: int | None = None
    """Linear layers of ape, blocks of residual; None: 4."""
    dropout: float = 0.0
    """Share of the hidden values that are dropped in training, 0 to below 1."""
    normalize_input: Literal["none", "layernorm", "standardize", "l2"] = "none"
    """What is done to the encoder's vectors first; standardize uses mean and deviation of the cached vectors."""
    start: Literal["random", "identity"] = "random"
    """identity: a linear head between equal widths changes nothing before training, so that the encoder's own space is where it starts."""

    def __post_init__(self) -> None:
        check_at_least(1, "model.*-head", hidden_width=self.hidden_width, num_layers=self.num_layers)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--model.*-head.dropout is {self.dropout}; it must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Image encoder, text encoder and the heads between them, by name."""

    image: str
    """Image encoder (`vlm list image`); frozen."""
    text: str
    """Text encoder (`vlm list text`); frozen."""
    name: str = ""
    """What run folders call this composition; empty: the names of its parts."""
    image_source: str = ""
    """Folder or hub id to load the image encoder from, instead of the registry's; empty: the registry's."""
    text_source: str = ""
    """Folder or hub id to load the text encoder from, instead of the registry's; empty: the registry's."""
    image_head: HeadConfig = HeadConfig()
    """Head on the image side; identity: texts come into the space of the images."""
    text_head: HeadConfig = HeadConfig(kind="ape")
    """Head on the text side."""
    joint_width: int | None = None
    """Width of the joint space; None: that of the side without a head, the image side's first."""
    instruction: str = ""
    """What an instructed text encoder is told before each text; empty: nothing."""
    loss: Literal["clip", "siglip", "multi-positive", "multi-positive-sigmoid"] = "clip"
    """What makes pairs similar: softmax over the batch, or a sigmoid for each combination; it decides whether the model has a bias beside its scale."""

    def __post_init__(self) -> None:
        if self.name:
            check_folder_word("model", self.name)
        check_at_least(1, "model", joint_width=self.joint_width)

    @property
    def run_name(self) -> str:
        """`name`, or the names of the parts, safe as a folder name."""
        return self.name or f"{self.image}-{self.text_head.kind}-{self.text}".replace(":", "-").replace("/", "-")


@dataclass(frozen=True)
class HeadRates:
    """Peak learning rate of each part; None freezes the part."""

    image_head: float | None = None
    """Head on the image side; None freezes it."""
    text_head: float | None = 1e-3
    """Head on the text side; None freezes it."""
    scale: float | None = 1e-3
    """Scale of the similarities, and their bias; None freezes them."""

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(
                    f"--stage.lr.{name.replace('_', '-')} is {rate}; a learning rate is positive and finite, and None freezes the part."
                )
        if self.image_head is None and self.text_head is None:
            raise ConfigError("No head has a learning rate, so nothing would be trained. Set --stage.lr.text-head or --stage.lr.image-head.")

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parts with a rate."""
        return tuple(name for name, rate in vars(self).items() if rate is not None)


@dataclass(frozen=True)
class DistillConfig:
    """What the text head learns from another text encoder in the space of the images (ProCLIP, arXiv:2510.18795)."""

    teacher: str = ""
    """Text encoder (`vlm list text`) whose vectors are the goal, `native` for the image encoder's own; empty: no distillation."""
    teacher_source: str = ""
    """Folder or hub id to load it from; empty: the registry's."""
    weight: float = 1.0
    """Weight of distillation on captions, beside the contrastive loss's 1."""
    structure: float = 0.0
    """Weight, within distillation, of what the batch finds similar, beside the vectors' own 1; helped nowhere in benchmarks/contrastive_demo.md."""
    texts: tuple[str, ...] = ()
    """Texts without images to learn from as well: text files with one text a line, or `classes:<file of names>`, which puts each name into templates."""
    texts_weight: float = 1.0
    """Weight of distillation on those texts."""
    texts_batch_size: int = 0
    """Such texts in each batch; 0: as many as pairs."""

    def __post_init__(self) -> None:
        check_at_least(0, "stage.distill", weight=self.weight, structure=self.structure, texts_weight=self.texts_weight)
        check_at_least(0, "stage.distill", texts_batch_size=self.texts_batch_size)


@dataclass(frozen=True, kw_only=True)
class ContrastiveStage(Schedule):
    """One stage of training the heads of a dual encoder, on vectors that were computed once."""

    lr: HeadRates = HeadRates()
    """Peak learning rates."""
    global_batch_size: int = 4_096
    """Pairs an optimizer step, over all devices; an image is in a batch once. The batch is part of the loss, so it is never cut into micro-batches."""
    per_device_batch_size: int | None = None
    """Pairs that one device holds at once; None, or its whole share of the global batch: less would be accumulation, which is refused."""
    distill: DistillConfig = DistillConfig()
    """Distillation from the image encoder's own text encoder."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """How the vectors are stored."""
    encode_batch_size: int = 64
    """Pictures or texts that are encoded at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, "stage", encode_batch_size=self.encode_batch_size, per_device_batch_size=self.per_device_batch_size)


@dataclass(frozen=True)
class PairAssumptions(DeviceAssumptions):
    """What --dry-run takes for granted, because it looks at no data that is not here and runs on no device."""

    num_images: int | None = None
    """Training pictures; None: as many as the prepared data has, or as are published of the dataset."""
    captions_per_image: float = 5.0
    """Captions of each picture; of --assume.num-images pictures."""
    text_tokens: int = 16
    """Tokens of a caption, with what a template adds; 16 is about COCO's mean. Encoders that pad texts to one length compute that length whatever it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, "assume", num_images=self.num_images, captions_per_image=self.captions_per_image, text_tokens=self.text_tokens)


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(RunConfig):
    """One complete run that trains the heads of a dual encoder."""

    model: DualEncoderConfig
    """The composition."""
    stage: ContrastiveStage
    """The stage of training."""
    cache_root: Path | None = None
    """Folder of the cached vectors, which runs share; None: `features` below --data-root."""
    allow_overlap: bool = False
    """Go on although validation pictures are among the training pictures, and say so in every report."""
    assume: PairAssumptions = PairAssumptions()
    """What --dry-run takes for granted."""

"""Any model by name, ready to be used: what a run trained, or a published pair of encoders."""

from pathlib import Path
from typing import Any

import torch

from vlm.conf.contrastive import DualEncoderConfig, HeadConfig
from vlm.conf.schema import VisionLanguageConfig
from vlm.distributed.launch import choose_device, choose_precision
from vlm.errors import CheckpointError, ConfigError, UnknownNameError, VLMError, nearest
from vlm.models import checkpoint
from vlm.models.build import FROZEN_DTYPE
from vlm.models.dual_build import PublishedPair, build_dual, build_pair, find_pair, pair_names
from vlm.models.dual_encoder import DualEncoder


def open_model(name: str | Path, *, device: str = "auto", precision: str = "auto", run_root: Path = Path("runs"), **sources: str) -> Any:
    """A `VisionLanguageModel` or a `DualEncoder`, whichever the name stands for; also `vlm.load`.

    Args:
        name: A checkpoint folder, a run folder, a unique prefix of a run's name, a hub id (`owner/name`, `owner/name@revision`), or a published pair
            (`clip-b32-224`, `open-clip:ViT-B-32:laion2b_s34b_b79k`).
        device: auto, cuda, mps or cpu.
        precision: fp32, bf16-mixed, bf16 or auto; see RunConfig.precision.
        run_root: Where a prefix is looked up.
        sources: Other folders for the towers: `vision_source` and `language_source`, or `image_source` and `text_source`.

    Raises:
        ConfigError: If no or more than one run answers to the name, or the device does not exist.
        CheckpointError: If weights are missing or not those that the checkpoint was trained with, or the hub does not give them.
    """
    opened = _found(name, run_root)
    if isinstance(opened, Path) and isinstance(checkpoint.read_manifest(opened).config, VisionLanguageConfig):
        return checkpoint.open_model(opened, device=device, precision=precision, run_root=run_root, **sources)
    place = torch.device(choose_device(device))
    build: Any = build_dual if isinstance(opened, Path) else build_pair
    return build(opened, dtype=FROZEN_DTYPE[choose_precision(precision, place)], **sources).to(place)


def open_dual(name: str | Path, *, device: str = "auto", precision: str = "auto", run_root: Path = Path("runs"), **sources: str) -> DualEncoder:
    """A dual encoder by name; the arguments are those of `open_model`.

    Raises:
        CheckpointError: If the name is of a model that answers.
    """
    model = open_model(name, device=device, precision=precision, run_root=run_root, **sources)
    if not isinstance(model, DualEncoder):
        raise CheckpointError(f"{name} is a model that answers, not a dual encoder. Name one, or a published pair such as clip-b32-224.")
    return model


def dual_config(name: str | Path, *, run_root: Path = Path("runs")) -> DualEncoderConfig:
    """Which encoders and heads a dual encoder is made of, by its name; no weights are loaded. The arguments are those of `open_model`.

    Raises:
        ConfigError: If no or more than one run answers to the name.
        CheckpointError: If the name is of a model that answers.
    """
    found = _found(name, run_root)
    if isinstance(found, PublishedPair):
        return DualEncoderConfig(image=found.encoder("image"), text=found.encoder("text"), text_head=HeadConfig())
    config = checkpoint.read_manifest(found).config
    if not isinstance(config, DualEncoderConfig):
        raise CheckpointError(f"{name} is a model that answers, not a dual encoder. Name one, or a published pair such as clip-b32-224.")
    return config


def _found(name: str | Path, run_root: Path) -> Path | PublishedPair:
    """The checkpoint or the published pair that a name stands for.

    Raises:
        VLMError: If it stands for neither.
    """
    try:
        return checkpoint.find_checkpoint(name, run_root=run_root)
    except VLMError as error:
        try:
            return find_pair(str(name))
        except UnknownNameError:
            near = nearest(str(name), pair_names())
            if near and isinstance(error, ConfigError):
                raise ConfigError(f"{error} Among published pairs, did you mean {' or '.join(near)}?") from None
            raise error from None

"""What a run starts from: another run's trained weights, checked part by part, and which weights of the towers take part at all.

Knows checkpoints only through `vlm.models.checkpoint`; trains nothing.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.conf.schema import TrainConfig, VisionLanguageConfig
from vlm.connectors import CONNECTORS
from vlm.errors import CheckpointError
from vlm.models import checkpoint
from vlm.models.vision_language import PARTS, VisionLanguageModel, is_trained

log = logging.getLogger(__name__)

REGISTRIES = {"vision": VISION, "connector": CONNECTORS, "language": LANGUAGE}
PREPARATION = ("feature_layer", "resize")  # what the stored weights are used to, and no shape shows; templates change between stages


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint that `--init-from` names, composed of the same parts as this run; None if none is named.

    Raises:
        ConfigError: If no or more than one run answers to the name.
        CheckpointError: If the checkpoint is of other parts, or has another adapter.
    """
    if config.init_from is None:
        return None
    folder = checkpoint.find_checkpoint(config.init_from, run_root=config.run_root)
    manifest = checkpoint.read_manifest(folder)
    check_same_parts(config.model, manifest.config, manifest.stored, folder)
    return folder


def check_same_parts(wanted: VisionLanguageConfig, stored: VisionLanguageConfig, parts: tuple[str, ...], folder: Path) -> None:
    """Compare a checkpoint's composition with this run's; differences in how pictures are prepared are logged.

    Raises:
        CheckpointError: If a part or the adapter differs.
    """
    for part, registry in REGISTRIES.items():
        theirs, ours = registry.resolve(getattr(stored, part)), registry.resolve(getattr(wanted, part))
        if theirs != ours:
            raise CheckpointError(f"{folder} has the {part} {theirs!r}, this run {ours!r}. Set --model.{part} {theirs}, or leave --init-from out.")
    for tower, adapter in vars(stored.lora).items():
        own = getattr(wanted.lora, tower)
        if tower in parts and adapter.rank and adapter != replace(own, dropout=adapter.dropout):
            raise CheckpointError(f"{folder} has the adapter {adapter} of {tower}, this run {own}. Set --model.lora.{tower} to the same values.")
    for name in PREPARATION:
        theirs, ours = getattr(stored, name), getattr(wanted, name)
        if theirs != ours:
            log.warning("%s was trained with %s %r, this run uses %r.", folder, name, theirs, ours)


def load_start(model: VisionLanguageModel, folder: Path) -> list[str]:
    """Load a checkpoint's trained weights; returns a line for each part of the model that says where its weights are from.

    Raises:
        CheckpointError: If the towers are not those that the checkpoint was trained with, or its tensors do not fit.
    """
    manifest = checkpoint.read_manifest(folder)
    checkpoint.check_fingerprints(model, manifest, folder)
    lines = [f"from {folder}: {line}" for line in checkpoint.load_trained(model, folder)]
    return lines + [f"not in {folder}: {part}, which starts as its source has it" for part in PARTS if part not in manifest.stored]


def freeze_unused(model: VisionLanguageModel) -> int:
    """Freeze the weights of a trained vision backbone that no patch feature depends on (layers behind the chosen one, pooling heads).

    They would never get a gradient, and DistributedDataParallel waits for one from every trained weight.

    Returns:
        Number of values frozen.
    """
    if not is_trained(model.vision):
        return 0
    size = model.image_policy.size
    weights = [weight for weight in model.vision.parameters() if weight.requires_grad]
    features = model.vision(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.device))
    gradients = torch.autograd.grad(features.float().sum(), weights, allow_unused=True)
    unused = [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is None]
    for weight in unused:
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in unused)

"""Adapters folded into the weights of their towers: a checkpoint that holds the towers whole, and needs no adapter. Checks itself by the logits."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vlm.backbones.lora import fold
from vlm.backbones.quantization import dequantize
from vlm.backbones.writing import refuse_existing
from vlm.conf.schema import LoRATowers
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import Example
from vlm.errors import CheckpointError
from vlm.models import checkpoint
from vlm.models.build import adaptable
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ChatBatch

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 1e-4  # of the largest logit: fp32's rounding grows through the layers, to 1.1e-5 in the 30 of SmolLM2-135M; an adapter changes more
NUM_TOKENS = 32  # of the random text beside the picture of the check


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        towers: Parts whose adapter was folded.
        difference: Largest difference of a logit between before and after, in fp32.
        largest: Largest absolute logit.
        rounding: Largest difference that storing the weights in the chosen type makes, in fp32 arithmetic; 0 for fp32.
    """

    towers: tuple[str, ...]
    difference: float
    largest: float
    rounding: float


def merge(folder: Path, out: Path, *, dtype: str = "fp32", sources: dict[str, str] | None = None) -> Merged:
    """Fold the adapters of a checkpoint into its towers, in fp32, and write a checkpoint without adapters.

    The logits of a random text with a random picture are compared before anything is written. Of a quantized tower, the weights that the quantized
    layers stand for get the adapter, as it was trained on them.

    Args:
        folder: A checkpoint folder with an adapter.
        out: The folder to write; must not exist.
        dtype: Type in which the merged towers are stored, fp32 or bf16.
        sources: Other folders for the towers; see `checkpoint.load`.

    Raises:
        CheckpointError: If there is no adapter, `out` exists, the disk is too full, or the logits differ by more than rounding.
    """
    manifest = checkpoint.read_manifest(folder)
    if not manifest.adapted:
        raise CheckpointError(f"{folder} has no adapter, so there is nothing to merge: `vlm chat` and vlm.load open it as it is.")
    refuse_existing(out)
    model = checkpoint.load(folder, precision="fp32", sources=sources)
    model.altered |= manifest.adapted
    _refuse_full_disk(model, out, dtype)
    towers = tuple(sorted(manifest.adapted))
    batch = _random_batch(model)
    for tower in model.quantized:
        dequantize(getattr(model, tower))
    before = _logits(model, batch)
    fold_adapters(model)
    after = _logits(model, batch)
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise CheckpointError(
            f"The merged model of {folder} has other logits: they differ by {difference:.2g}, the largest is {largest:.2g}. Nothing is written. "
            "Its adapter cannot be folded; use the checkpoint as it is."
        )
    for tower in towers:
        getattr(model, tower).to(DTYPES[dtype])
    checkpoint.save(model, replace(manifest.config, lora=LoRATowers()), out)
    rounding = 0.0 if dtype == "fp32" else float((_logits(model.float(), batch) - after).abs().max())
    return Merged(towers=towers, difference=difference, largest=largest, rounding=rounding)


def fold_adapters(model: VisionLanguageModel) -> None:
    """Fold every adapter into the weights of its tower, quantized ones made plain first; the model has none afterwards."""
    for tower in model.quantized:
        dequantize(getattr(model, tower))
    for tower in model.adapters:
        fold(adaptable(tower, getattr(model, tower)))
    model.adapters, model.quantized = {}, {}


def _refuse_full_disk(model: VisionLanguageModel, out: Path, dtype: str) -> None:
    needed = sum(weight.numel() for part in model.altered for weight in getattr(model, part).parameters()) * DTYPES[dtype].itemsize
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(f"{out} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Free space, name another disk, or use --dtype bf16.")


def _random_batch(model: VisionLanguageModel) -> ChatBatch:
    """One row: a picture of noise and random tokens."""
    noise = torch.Generator().manual_seed(0)
    size, vocabulary = model.image_policy.size, model.language.model.get_input_embeddings().weight.shape[0]
    words = torch.randint(0, vocabulary, (NUM_TOKENS,), generator=noise)
    words = words[words != model.language.image_token_id]
    ids = torch.cat([torch.full((model.tokens_per_tile,), model.language.image_token_id), words])
    pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=noise)
    example = Example(id="random", ids=ids, labels=ids, pixels=pixels)
    return collate_singly([example], pad_id=model.language.tokenizer.pad_token_id).to(model.device)


@torch.no_grad()
def _logits(model: VisionLanguageModel, batch: ChatBatch) -> Float[Tensor, "M V"]:
    return model.language.logits(model.hidden(batch).flatten(0, 1)[-NUM_TOKENS:])

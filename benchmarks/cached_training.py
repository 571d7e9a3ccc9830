"""How much faster an epoch of a contrastive head is on cached features than with both towers run in every step: two trainings, measured.

    OMP_WAIT_POLICY=passive python benchmarks/cached_training.py [--batch 64] [--steps 3] [--cached-steps 60]

Both sides are the loop of every run (`vlm.training.loop.train`) with the same head, loss, optimizer and batch. One reads its batches from two `FeatureCache`s
by the `PairLoader`; the other encodes them first, by the towers of CLIP ViT-B/32 in full size with random weights, which cost the same. Encoding starts from
pixels and token ids in memory: decoding, resizing and tokenizing are left out, in favor of encoding. An epoch is the same number of steps on both sides, so the
ratio of epochs is that of steps. The encoding that fills the cache, once, is not in it. The first step of each training is not counted.

`ratio` is the smallest of both heads and both clocks. Where other work runs, CPU time alone means something.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.conf.contrastive import ContrastiveStage, DualEncoderConfig, HeadConfig, HeadRates
from vlm.conf.schema import BatchPlan
from vlm.data.feature_cache import FeatureCache, write_features
from vlm.data.stream.pairs import Captions, PairBatch, PairLoader, PairOrder
from vlm.models.dual_build import build_heads
from vlm.training.loop import Hooks, Steps, Trainee, train
from vlm.types import World

IMAGE_NAME, TEXT_NAME = "clip-b32-224-image", "clip-b32-224-text"
WIDTH, ROWS, TOKENS, SIDE = 512, 100_000, 77, 224
HIDDEN = (512, 2048)  # widths of the head: what `ape` has by default for these towers, and the widest of the presets
EPOCH = 113_287  # images of COCO in Karpathy's training split


@dataclass(frozen=True)
class Cost:
    """Median seconds of a step, each over all steps but the first."""

    wall: float
    cpu: float


def main() -> None:
    """Train both ways with each head, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="pairs of a step, on both sides")
    parser.add_argument("--steps", type=int, default=3, help="steps that encode, for each head, and one before them")
    parser.add_argument("--cached-steps", type=int, default=60, help="steps on cached features, for each head, and one before them")
    settings = parser.parse_args()
    encode = towers(settings.batch)
    costs: dict[int, tuple[Cost, Cost]] = {}
    with tempfile.TemporaryDirectory() as root:
        images, texts = (cache(Path(root) / name) for name in ("images", "texts"))
        rows = np.arange(ROWS)
        order = PairOrder(Captions.of(rows, rows), settings.batch, seed=0)
        for hidden in HIDDEN:
            cached = measure(hidden, PairLoader(images, texts, order, num_steps=settings.cached_steps + 1), settings.cached_steps + 1, settings.batch)
            encoded = measure(hidden, encoded_batches(encode, settings.batch, settings.steps + 1), settings.steps + 1, settings.batch)
            costs[hidden] = encoded, cached
    report(costs, settings.batch)


def towers(batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Both towers on a batch of inputs: vectors of images, vectors of texts."""
    image, spec = build_image(IMAGE[IMAGE_NAME], Load(None)), TEXT[TEXT_NAME]
    text: Any = spec.build(spec, Load(None)).eval()
    ids = torch.randint(1, 40_000, (batch, TOKENS))
    ids[:, -1] = text.end_token_id
    pixels = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)

    @torch.inference_mode()
    def encode() -> tuple[Tensor, Tensor]:
        return image(pixels), text(ids)

    return encode


def encoded_batches(encode: Callable[[], tuple[Tensor, Tensor]], batch: int, steps: int) -> Iterator[PairBatch]:
    """Batches whose vectors are made when they are asked for."""
    for _ in range(steps):
        image, text = encode()
        yield PairBatch(image.clone(), text.clone(), torch.arange(batch), samples=tuple(range(batch)))


def cache(folder: Path) -> FeatureCache:
    """A cache of random vectors."""
    write_features(folder, range(ROWS), lambda items: torch.randn(len(items), WIDTH), key={}, batch_size=10_000)
    return FeatureCache(folder)


def measure(hidden: int, batches: Iterable[PairBatch], steps: int, batch: int) -> Cost:
    """What a step of the trainer costs on these batches."""
    config = DualEncoderConfig(image=IMAGE_NAME, text=TEXT_NAME, text_head=HeadConfig(kind="ape", hidden_width=hidden))
    stage = ContrastiveStage(name="align", dataset="", lr=HeadRates(), global_batch_size=batch)
    world = World.single()
    ends: list[tuple[float, float]] = []
    train(
        Trainee.of(build_heads(config), stage, world),
        batches,
        stage=stage,
        plan=BatchPlan(world=1, per_device=batch, accumulation=1),
        steps=Steps(steps),
        world=world,
        autocast=False,
        hooks=Hooks(log=lambda step, metrics: ends.append((time.perf_counter(), time.process_time()))),
    )
    wall, cpu = np.diff(np.array(ends), axis=0).T
    return Cost(statistics.median(wall), statistics.median(cpu))


def report(costs: dict[int, tuple[Cost, Cost]], batch: int) -> None:
    """A table, then one line of JSON."""
    title = f"CLIP ViT-B/32, batches of {batch}, {torch.get_num_threads()} threads; an epoch is COCO's {EPOCH:,} images"
    table = Table("head", "", "ms a pair, encoded", "cached", "epoch, encoded", "cached", "ratio", title=title)
    ratios: dict[str, dict[str, float]] = {"wall": {}, "cpu": {}}
    milliseconds: dict[str, float] = {}
    for hidden, (encoded, cached) in costs.items():
        for clock in ("wall", "cpu"):
            pair = [getattr(cost, clock) / batch for cost in (encoded, cached)]
            epochs = [each * (EPOCH // batch * batch) for each in pair]
            ratios[clock][str(hidden)] = round(pair[0] / pair[1], 1)
            milliseconds |= {f"{kind}_{hidden}_{clock}": round(each * 1e3, 4) for kind, each in zip(("encoded", "cached"), pair, strict=True)}
            shown = [f"{pair[0] * 1e3:.1f}", f"{pair[1] * 1e3:.3f}", f"{epochs[0] / 60:,.0f} min", f"{epochs[1]:.0f} s"]
            table.add_row(f"ape, {hidden} wide", clock, *shown, f"{pair[0] / pair[1]:,.0f}x")
    Console(highlight=False, width=140).print(table)
    result = {"ratio": min(ratio for clock in ratios.values() for ratio in clock.values()), "ratios": ratios}
    print(json.dumps(result | {"milliseconds_per_pair": milliseconds, "batch": batch, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

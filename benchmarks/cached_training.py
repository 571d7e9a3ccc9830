"""How much faster an epoch of a contrastive head is on cached features than with both towers run in every step.

    python benchmarks/cached_training.py [--pairs 32] [--batch 256] [--repetitions 3]

The towers are those of CLIP ViT-B/32 in their real size, with random weights, which cost the same; an LLM as text tower costs ten times as much (1.3B) and
more.
Encoding starts from pixels and token ids in memory, so decoding, resizing and tokenizing are left out, all in favor of encoding. Reading starts from a
`FeatureCache` in the page cache. The head is APD's: four linear layers with ReLU; the step is CLIP's loss over the batch and AdamW. One thread, CPU
seconds: what else runs on the machine does not change them much.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.data.feature_cache import FeatureCache, write_features

WIDTH, ROWS, TOKENS, SIDE = 512, 100_000, 77, 224
HIDDEN = (512, 2048)  # widths of the head


def main() -> None:
    """Time a pair's share of each part, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32, help="pairs that the towers encode at once")
    parser.add_argument("--batch", type=int, default=256, help="pairs of a training step")
    parser.add_argument("--repetitions", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    seconds = {name: each(work, settings.pairs, settings.repetitions) for name, work in towers(settings.pairs).items()}
    with tempfile.TemporaryDirectory() as root:
        images, texts = (cache(Path(root) / name) for name in ("images", "texts"))

        def read() -> tuple[Tensor, Tensor]:
            return images.rows(torch.randint(ROWS, (settings.batch,))).float(), texts.rows(torch.randint(ROWS, (settings.batch,))).float()

        seconds["read both from the cache"] = each(read, settings.batch, 20 * settings.repetitions)
        for hidden in HIDDEN:
            seconds[f"train a head of {hidden}"] = each(train_step(hidden, *read()), settings.batch, 3 * settings.repetitions)
    report(settings, seconds)


def towers(pairs: int) -> dict[str, Callable[[], Any]]:
    """Both towers, each on as many inputs."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    spec = TEXT["clip-b32-224-text"]
    text: Any = spec.build(spec, Load(None)).eval()
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=WIDTH)).eval()  # its defaults are ViT-B/32
    ids = torch.randint(1, 40_000, (pairs, TOKENS))
    ids[:, -1] = text.end_token_id
    pixels = torch.randn(pairs, 3, SIDE, SIDE)

    @torch.inference_mode()
    def encode_texts() -> Tensor:
        return text(ids)

    @torch.inference_mode()
    def encode_images() -> Tensor:
        return image(pixel_values=pixels).image_embeds

    assert encode_texts().shape == encode_images().shape == (pairs, WIDTH)
    return {"encode a text": encode_texts, "encode an image": encode_images}


def cache(folder: Path) -> FeatureCache:
    """A cache of random vectors."""
    write_features(folder, range(ROWS), lambda items: torch.randn(len(items), WIDTH), key={}, batch_size=10_000)
    return FeatureCache(folder)


def train_step(hidden: int, images: Tensor, texts: Tensor) -> Callable[[], None]:
    """One step of the head on a batch of features."""
    sizes = [WIDTH, hidden, hidden, hidden, WIDTH]
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    head = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    targets = torch.arange(len(images))

    def step() -> None:
        scores = 10 * normalize(images) @ normalize(head(texts)).T
        loss = (cross_entropy(scores, targets) + cross_entropy(scores.T, targets)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def each(work: Callable[[], Any], count: int, repetitions: int) -> float:
    """Median CPU seconds of one pair's share of a call; the first call is not counted."""
    times = []
    for _ in range(repetitions + 1):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / count)
    return statistics.median(times[1:])


def report(settings: argparse.Namespace, seconds: dict[str, float]) -> None:
    """A table, then one line of JSON."""
    table = Table("CPU time of one pair, one thread", "ms", title=f"CLIP ViT-B/32, batches of {settings.batch}")
    for name, value in seconds.items():
        table.add_row(name, f"{value * 1e3:.4f}")
    encode, read = seconds["encode a text"] + seconds["encode an image"], seconds["read both from the cache"]
    ratios = {hidden: (encode + seconds[f"train a head of {hidden}"]) / (read + seconds[f"train a head of {hidden}"]) for hidden in HIDDEN}
    for hidden, ratio in ratios.items():
        table.add_row(f"an epoch with a head of {hidden}: encoding / cached", f"{ratio:,.0f}x")
    Console(highlight=False, width=120).print(table)
    result = {"epoch_speedup": round(min(ratios.values()), 1), "epoch_speedups": {str(hidden): round(ratio, 1) for hidden, ratio in ratios.items()}}
    print(json.dumps(result | {"milliseconds": {name: round(value * 1e3, 5) for name, value in seconds.items()}}))


if __name__ == "__main__":
    main()

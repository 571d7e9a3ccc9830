"""How fast samples become batches: our loader by stage, and as a whole against `datasets` with transformers' PIL processor, on the same JPEGs.

    python benchmarks/loader.py [--images 500] [--batch 16] [--workers 2] [--repetitions 7]

The other side is what a competent user writes: a `datasets.Dataset`, a torch DataLoader, and a collate function that calls `LlavaProcessor`
(CLIP's PIL image processor, the same tokenizer, the same chat template). Before anything is timed, pixels and token ids of both are compared, bit for bit.
"""

import argparse
import io
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library is imported: both sides fork

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from vlm.assets import package_file
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.chat_templates import CHATML, fit_template
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import Normalize
from vlm.conf.schema import BatchPlan
from vlm.data.chat import encode_chat
from vlm.data.image import load_image, to_tiles
from vlm.data.reader import open_dataset
from vlm.data.stream.collate import collate_singly
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.loader import make_loader
from vlm.data.stream.order import shuffled
from vlm.errors import MissingPackageError
from vlm.messages import IMAGE_PLACEHOLDER
from vlm.types import ImagePolicy

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
)
SIZE = (640, 480)  # COCO's most frequent
QUALITY = 93  # about 130 KB a picture; COCO's have 160 KB
SPEC, LANGUAGE_NAME = "clip-l14-336", "smollm2-135m-instruct-q4"
POLICY = ImagePolicy(size=336, mode="crop", resample="bicubic")
TOKENS_PER_IMAGE = 576
QUESTIONS = (
    "What is shown in this picture?",
    "Which colors are there?",
    "Is anybody in it?",
    "What stands in the background, and how far away is it?",
)
ANSWER = "The picture shows a scene with several objects, some of them in front of others; the light comes from the left, and the colors are warm. "
JINJA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
)


def main() -> None:
    """Make the data, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 500), ("batch", 16), ("workers", 2), ("repetitions", 7), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        data, texture = make_data(Path(folder), settings.images)
        examples, plain = ours(data), Plain(data)
        check_equal(examples, plain)
        stages = measure_stages(examples, settings.batch)
        walls, cpus = race(examples, plain, settings)
    report(settings, texture, stages, walls, cpus)


# The data


def photos() -> tuple[list[Image.Image], str]:
    """Large pictures with natural texture: those of scikit-image's wheel, or smooth noise."""
    try:
        files = [package_file("scikit-image", f"skimage/data/{name}") for name in PHOTOS]
        return [load_image(file) for file in files], "photos of scikit-image"
    except MissingPackageError:
        rng = np.random.default_rng(0)
        octaves = [rng.normal(size=(3 * 2**k, 4 * 2**k, 3)) * 60 / 2 ** (k / 2) for k in range(1, 8)]
        layers = [
            np.stack([np.asarray(Image.fromarray(o[..., c].astype(np.float32)).resize((800, 600), Image.Resampling.BICUBIC)) for c in range(3)], -1)
            for o in octaves
        ]
        return [Image.fromarray((128 + np.sum(layers, axis=0)).clip(0, 255).astype(np.uint8))], "smooth noise"


def make_data(folder: Path, count: int) -> tuple[Path, str]:
    """A LLaVA-style file and its JPEGs: crops of the photos, each of its own place and size, two thirds in landscape format."""
    rng, rows = np.random.default_rng(1), []
    sources, texture = photos()
    for i in range(count):
        source = sources[i % len(sources)]
        width, height = SIZE if i % 3 else SIZE[::-1]
        scale = rng.uniform(0.5, 1.0) * min(source.width / width, source.height / height)
        box_width, box_height = int(width * scale), int(height * scale)
        left, top = int(rng.integers(source.width - box_width + 1)), int(rng.integers(source.height - box_height + 1))
        crop = source.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + box_width, top + box_height))
        crop.save(folder / f"{i:06}.jpg", quality=QUALITY)
        turns = []
        for j in range(1 + i % len(QUESTIONS)):
            turns += [
                {"from": "human", "value": ("" if j else f"{IMAGE_PLACEHOLDER}\n") + QUESTIONS[j]},
                {"from": "gpt", "value": (ANSWER * (1 + j)).strip()},
            ]
        rows.append({"id": str(i), "image": f"{i:06}.jpg", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path, f"{texture}, {sum(file.stat().st_size for file in folder.glob('*.jpg')) / count / 1000:.0f} KB a JPEG"


# The two sides


def load_tokenizer() -> Any:
    """The tokenizer of both sides."""
    spec = LANGUAGE[LANGUAGE_NAME]
    tokenizer = spec.tokenizer(spec, None)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def ours(data: Path) -> ChatExamples:
    """The examples that `vlm pretrain` would load."""
    tokenizer = load_tokenizer()
    return ChatExamples(
        open_dataset(str(data), data_root=data.parent),
        template=fit_template(CHATML, tokenizer),
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        policy=POLICY,
        tokens_per_image=lambda layout: layout.num_tiles * TOKENS_PER_IMAGE,
        max_length=2048,
    )


class Plain:
    """`datasets`, LlavaProcessor and a collate function; pixels are normalized by the processor, as its user must."""

    def __init__(self, data: Path):
        import datasets
        import transformers

        roles = {"human": "user", "gpt": "assistant"}
        rows = [
            {
                "image": str(data.parent / row["image"]),
                "messages": [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]],
            }
            for row in json.loads(data.read_text(encoding="utf-8"))
        ]
        self.dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        self.images = transformers.CLIPImageProcessorPil(size={"shortest_edge": POLICY.size}, crop_size={"height": POLICY.size, "width": POLICY.size})
        self.processor: Any = transformers.LlavaProcessor(
            self.images,
            load_tokenizer(),
            patch_size=14,
            vision_feature_select_strategy="default",
            chat_template=JINJA,
            num_additional_image_tokens=1,
        )

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch with labels; padding and image tokens have none."""
        texts = [self.processor.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        images = [row["image"].convert("RGB") for row in rows]
        batch = self.processor(images=images, text=texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch["input_ids"].clone()
        labels[(batch["attention_mask"] == 0) | (labels == self.processor.image_token_id)] = -100
        return {**batch, "labels": labels}

    def loader(self, batch: int, workers: int) -> Iterable[dict[str, torch.Tensor]]:
        """A shuffled DataLoader."""
        return DataLoader(self.dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, collate_fn=self.collate)  # type: ignore[arg-type]


def check_equal(examples: ChatExamples, plain: Plain, count: int = 32) -> None:
    """Pixels before and after normalization, and token ids, of both sides, bit for bit."""
    normalize = Normalize(VISION[SPEC])
    for i in range(count):
        example, row = examples[i], plain.dataset[i]
        raw = plain.images(row["image"].convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        batch = plain.collate([row])
        assert torch.equal(raw.to(torch.uint8), example.pixels), f"pixels of sample {i} differ"
        assert torch.equal(batch["pixel_values"], normalize(example.pixels)), f"normalized pixels of sample {i} differ"
        assert batch["input_ids"][0].tolist() == example.ids.tolist(), f"tokens of sample {i} differ"


# The measurements


def measure_stages(examples: ChatExamples, batch: int, count: int = 160) -> dict[str, float]:
    """Milliseconds a sample of each stage, in one process; the median of the samples."""
    samples, normalize = examples.samples, Normalize(VISION[SPEC])
    files = [samples[i].images[0] for i in range(count)]
    held = [io.BytesIO(file.read_bytes()) for file in files]
    pictures = [load_image(file) for file in files]
    made = [examples[i] for i in range(count)]
    groups = [made[i : i + batch] for i in range(0, count - batch + 1, batch)]
    batches = [collate_singly(group, pad_id=examples.pad_id) for group in groups]

    def encode(sample: Any) -> Any:
        return encode_chat(
            sample.messages,
            template=examples.template,
            tokenizer=examples.tokenizer,
            image_token_id=examples.image_token_id,
            tokens_per_image=[TOKENS_PER_IMAGE],
            max_length=examples.max_length,
        )

    return {
        "read row": each(lambda i: samples[i], range(count)),
        "read and decode JPEG": each(load_image, files),
        "  of which PIL's decoder": each(lambda file: Image.open(file).load(), held),
        "resize and crop to tile": each(lambda picture: to_tiles(picture, POLICY), pictures),
        "tokenize and label": each(encode, [samples[i] for i in range(count)]),
        "collate": each(lambda group: collate_singly(group, pad_id=examples.pad_id), groups) / batch,
        "(normalize, on the model's device)": each(lambda made: normalize(made.pixels), batches) / batch,
    }


def each(work: Callable[[Any], Any], items: Iterable[Any]) -> float:
    """Median milliseconds of a call; the first is not counted."""
    times = []
    for item in items:
        start = time.perf_counter()
        work(item)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:] or times)


def race(examples: ChatExamples, plain: Plain, settings: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall seconds from the first batch to the last, and CPU seconds, of one pass over the data; the sides in turn: A B A B."""
    steps = settings.images // settings.batch
    plan = BatchPlan(world=1, per_device=settings.batch, accumulation=1)
    walls: dict[str, list[float]] = {"ours": [], "plain": []}
    cpus: dict[str, list[float]] = {"ours": [], "plain": []}
    for repetition in range(settings.repetitions + 1):
        order = shuffled(settings.images, seed=repetition)
        sides: dict[str, Callable[[], Iterable[Any]]] = {
            "ours": lambda order=order: make_loader(examples, order, plan=plan, num_steps=steps, num_workers=settings.workers),
            "plain": lambda: plain.loader(settings.batch, settings.workers),
        }
        for side, make in sides.items():
            cpu = cpu_seconds()
            batches = iter(make())
            next(batches)  # the workers have started: training does that once
            start = time.perf_counter()
            assert sum(1 for _ in batches) == steps - 1
            if repetition:  # the first pass fills the page cache
                walls[side].append(time.perf_counter() - start)
                del batches  # the workers end, and their CPU time is known
                cpus[side].append(cpu_seconds() - cpu)
    return walls, cpus


def cpu_seconds() -> float:
    """CPU time of this process and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def report(settings: argparse.Namespace, texture: str, stages: dict[str, float], walls: dict[str, list[float]], cpus: dict[str, list[float]]) -> None:
    """Two tables, then one line of JSON."""
    samples = (settings.images // settings.batch - 1) * settings.batch  # without the first batch
    wall = {side: statistics.median(times) for side, times in walls.items()}
    cpu = {side: statistics.median(times) for side, times in cpus.items()}
    out = Console(highlight=False, width=120)
    table = Table("stage, one process", "ms a sample", "samples/s", title=f"{settings.images} pictures: {texture}; {platform.processor() or 'CPU'}")
    for stage, milliseconds in stages.items():
        table.add_row(stage, f"{milliseconds:.2f}", f"{1e3 / milliseconds:,.0f}")
    out.print(table)
    table = Table(
        f"{settings.workers} workers, batch {settings.batch}", "s a pass", "min to max", "samples/s", "CPU ms a sample, workers' start included"
    )
    for side in wall:
        spread = f"{min(walls[side]):.2f} to {max(walls[side]):.2f}"
        table.add_row(side, f"{wall[side]:.2f}", spread, f"{samples / wall[side]:.0f}", f"{cpu[side] / (samples + settings.batch) * 1e3:.2f}")
    out.print(table)
    ratios = [theirs / own for own, theirs in zip(walls["ours"], walls["plain"], strict=True)]
    result = {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ratio": round(cpu["plain"] / cpu["ours"], 3),
        "samples_per_second": round(samples / wall["ours"], 1),
        "images_per_second": round(samples / wall["ours"], 1),
        "plain_samples_per_second": round(samples / wall["plain"], 1),
        "stages_ms": {stage.strip(" ()"): round(milliseconds, 3) for stage, milliseconds in stages.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

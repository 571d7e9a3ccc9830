"""What heads learn of classes that no training picture shows, in a synthetic world where it can be counted. Trains by `vlm.train` itself.

    python benchmarks/synthetic_world.py [--quick] [--seed 0]

The world has 1,200 concepts, each a direction of the joint space. A training picture shows up to five of 80 concepts, and its captions name them or all but
one, as COCO's do. The encoders are registered by `Registry.add`, as any script can do it: caches, loader, objective, loop and checkpoints are those of every run.

- `world-image`: a picture is what it shows plus noise; the encoder reads it from the pixels.
- `world-text`: the text encoder of the same model. A text is the concepts that it names, in the space of the images, plus noise of its own.
- `world-llm-text`: another view. A concept is a vector of waves over its direction, so that only near concepts are alike; other words and noise lie upon it.

Measured are R@5 (captions to pictures) on new pictures of the 80 concepts, and zero-shot accuracy on pictures of 1,000 concepts that no training picture
shows, one prompt each. The broad text names all concepts, several at once; no prompt stands in it. Prints a table, then one line of JSON.
"""

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import vlm
from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import CLIP_INIT, ImageSpec, PooledImage
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import TextSpec
from vlm.conf.contrastive import ContrastiveConfig, ContrastiveStage, DistillConfig, DualEncoderConfig, HeadConfig, HeadRates
from vlm.data.benchmarks.base import Labelled, Picture
from vlm.data.benchmarks.captioned import open_captioned
from vlm.data.benchmarks.prompts import SINGLE_TEMPLATES, prompts_of
from vlm.evaluate.embedder import NamedEmbedder
from vlm.evaluate.retrieval import evaluate_retrieval
from vlm.evaluate.zero_shot import evaluate_zero_shot
from vlm.types import ImagePolicy

CONCEPTS, PICTURED, CLASSES = 1_200, 80, 1_000  # pictures show the first ones, classes are the last ones
WIDTH, LLM_WIDTH, NUISANCE = 128, 512, 64  # joint space; the LLM's vectors, and how many of their directions say nothing of concepts
SIDE, CONTRAST = 8, 24.0  # a picture's pixels, and what one deviation of them is, of 255
IMAGE_NOISE, TEXT_NOISE, LLM_NOISE = 2.2, 0.9, 0.3  # lengths, where a concept has length 1
FREQUENCY = 1.6  # of the waves; far below 1, the LLM's view would be linear, and pictures of 80 concepts would tell of all
OPENINGS = ("a view of", "here is", "someone left", "there stands", "we see", "close to us:", "an old picture of", "nothing but")
POLICY = ImagePolicy(size=SIDE, resample="nearest")
FACTS: dict[str, Any] = {"source": None, "license": "Apache-2.0", "paper": "", "num_parameters": 0}


def concept(number: int) -> str:
    """The word for a concept."""
    return f"thing{number:04}"


def random(name: str, *shape: int) -> np.ndarray:
    """Standard normal numbers that hang on a name alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class World:
    """What the concepts are."""

    seed: int

    @cached_property
    def concepts(self) -> np.ndarray:
        """Directions of the joint space, shape [CONCEPTS, WIDTH]."""
        directions = random(f"concepts {self.seed}", CONCEPTS, WIDTH)
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)

    @cached_property
    def rendering(self) -> np.ndarray:
        """From the joint space to deviations of pixels, with orthogonal columns, shape [3 * SIDE * SIDE, WIDTH]."""
        return np.linalg.qr(random(f"rendering {self.seed}", 3 * SIDE * SIDE, WIDTH))[0]

    @cached_property
    def llm_concepts(self) -> np.ndarray:
        """The LLM's vectors of the concepts, about as long as those of the joint space, shape [CONCEPTS, LLM_WIDTH - NUISANCE]."""
        width = LLM_WIDTH - NUISANCE
        phases = 2 * np.pi * np.random.default_rng(self.seed).random(width)
        return np.sin(FREQUENCY * self.concepts @ random(f"waves {self.seed}", WIDTH, width) + phases).astype(np.float32) * (2 / width) ** 0.5

    def draw(self, shown: Sequence[int], name: str) -> Image.Image:
        """A picture of some concepts."""
        vector = self.concepts[list(shown)].sum(0) / len(shown) ** 0.5 + IMAGE_NOISE * random(name, WIDTH) / WIDTH**0.5
        deviations = self.rendering @ vector * SIDE * 3**0.5 / np.hypot(1, IMAGE_NOISE)
        return Image.fromarray((128 + CONTRAST * deviations).round().clip(0, 255).astype(np.uint8).reshape(SIDE, SIDE, 3))


# The encoders


class WorldTower(nn.Module):
    """Reads what a picture shows from its pixels."""

    def __init__(self, world: World):
        super().__init__()
        self.readout = nn.Linear(3 * SIDE * SIDE, WIDTH, bias=False)
        self.readout.weight.data = torch.from_numpy(world.rendering.T.copy())

    def pooled(self, pixels: Tensor) -> Tensor:
        """One vector a picture."""
        return self.readout((pixels.permute(0, 2, 3, 1).flatten(1).float() - 128) / CONTRAST)

    def blocks(self) -> list[nn.Module]:
        """None."""
        return []


class WorldText(nn.Module):
    """The sum of the concepts that a text names, of its other words, and of noise that is its own."""

    def __init__(self, name: str, concepts: np.ndarray, *, noise: float, phrases: int = 0):
        """Take the vectors of the concepts, the length of the noise, and how many further numbers say nothing of concepts."""
        super().__init__()
        self.name, self.noise, self.phrases = name, noise, phrases
        self.concepts = nn.Parameter(torch.from_numpy(concepts))
        self.width = concepts.shape[1] + phrases

    def encode(self, texts: Sequence[str], *, instruction: str = "") -> Tensor:
        """One vector a text."""
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Tensor:
        words = text.replace(",", " ").replace(".", " ").split()
        named = [int(word.removeprefix("thing")) for word in words if word.startswith("thing")]
        others = [random(f"{self.name} {word}", self.phrases) for word in words if not word.startswith("thing")]
        meaning = self.concepts[named].sum(0) / len(named) ** 0.5
        phrase = torch.from_numpy(sum(others) / (len(others) * max(1, self.phrases)) ** 0.5)
        return torch.cat([meaning, phrase]) + self.noise / self.width**0.5 * torch.from_numpy(random(f"{self.name} {text}", self.width))

    def describe(self, *, instruction: str = "") -> dict[str, object]:
        """What changes the vectors beside the concepts."""
        return {"name": self.name, "noise": self.noise, "phrases": self.phrases}

    def blocks(self) -> list[nn.Module]:
        """None."""
        return []


def register(world: World) -> None:
    """Add the encoders of a world to the registries."""

    def image(spec: ImageSpec, load: Load) -> PooledImage:
        return PooledImage(spec, WorldTower(world))

    def text(name: str, concepts: np.ndarray, *, noise: float, phrases: int = 0) -> None:
        def assemble(spec: TextSpec, load: Load) -> WorldText:
            return WorldText(f"{name} {world.seed}", concepts, noise=noise, phrases=phrases)

        width = concepts.shape[1] + phrases
        TEXT.add(name, TextSpec(build=assemble, tokenizer=lambda *_: None, assemble=assemble, width=width, max_length=77, **FACTS))

    zeros = (0.0, 0.0, 0.0)
    spec = ImageSpec(build=image, width=WIDTH, image_policy=POLICY, mean=zeros, std=zeros, pooling="none", initial_scale=CLIP_INIT, **FACTS)
    IMAGE.add("world-image", replace(spec, read_scale=lambda *_: CLIP_INIT))
    text("world-text", world.concepts, noise=TEXT_NOISE)
    text("world-llm-text", world.llm_concepts, noise=LLM_NOISE, phrases=NUISANCE)


# The data


@dataclass(frozen=True)
class Sizes:
    """How much data there is; texts without pictures are of the broad kind.

    Attributes:
        train: Training pictures, each with three captions.
        held_out: Pictures that are searched, each with one caption.
        per_class: Pictures of each class.
        texts: Texts without pictures.
    """

    train: int
    held_out: int
    per_class: int
    texts: int


FULL, QUICK = Sizes(4_000, 1_000, 2, 12_000), Sizes(3_000, 500, 1, 8_000)


class Data:
    """Files of a world, in the forms that `vlm pretrain` reads."""

    def __init__(self, world: World, folder: Path, sizes: Sizes):
        """Draw and write everything."""
        self.world, self.folder, self.sizes = world, folder, sizes
        self._random = np.random.default_rng(world.seed)
        (folder / "pictures").mkdir()
        self.train = self._captioned("train", sizes.train, captions=3)
        self.held_out = self._captioned("held-out", sizes.held_out, captions=1)
        broad = [self._caption(self._several(CONCEPTS)) for _ in range(sizes.texts)]
        self.texts = {
            "captions": self._texts("captions", open_captioned(str(self.train), data_root=folder).captions),
            "broad": self._texts("broad", broad),
        }

    def _several(self, among: int) -> list[int]:
        return self._random.choice(among, self._random.integers(1, 6), replace=False).tolist()

    def _caption(self, shown: list[int]) -> str:
        named = self._random.permutation(shown)[: max(1, len(shown) - int(self._random.integers(2)))]
        return f"{self._random.choice(OPENINGS)} {', '.join(map(concept, named))}"

    def _captioned(self, name: str, count: int, *, captions: int) -> Path:
        rows = []
        for number in range(count):
            shown, file = self._several(PICTURED), f"pictures/{name}-{number}.png"
            self.world.draw(shown, f"{self.world.seed} {file}").save(self.folder / file)
            rows.append({"image": file, "captions": [self._caption(shown) for _ in range(captions)]})
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    def _texts(self, name: str, texts: Sequence[str]) -> Path:
        path = self.folder / f"{name}.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        return path

    def never_pictured(self) -> Labelled:
        """Pictures of the last CLASSES concepts, one concept each."""
        labels = [number for number in range(CLASSES) for _ in range(self.sizes.per_class)]
        first = CONCEPTS - CLASSES
        drawn = [np.asarray(self.world.draw([first + label], f"{self.world.seed} class {i}")) for i, label in enumerate(labels)]
        pictures = [Picture(str(i), pixels) for i, pixels in enumerate(drawn)]
        return Labelled("never-pictured", pictures, torch.tensor(labels), tuple(concept(first + i) for i in range(CLASSES)))


# The runs


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        epochs: Times that each picture is seen.
        teacher: `native` to distil from the image encoder's own text encoder, on the captions.
        texts: Key of `Data.texts` to do so on these texts as well, TEXTS_A_STEP of them a step.
    """

    epochs: float
    teacher: str = ""
    texts: str = ""


BATCH, TEXTS_A_STEP = 256, 512
HEAD = HeadConfig(kind="ape", hidden_width=512, num_layers=2, normalize_input="standardize")
RECIPES = {
    "InfoNCE": Recipe(10),
    "InfoNCE, 4 times as long": Recipe(40),
    "+ distillation on the captions": Recipe(20, "native"),
    "+ the captions once more as texts": Recipe(20, "native", "captions"),
    "+ broad texts, a quarter as long": Recipe(5, "native", "broad"),
    "+ broad texts": Recipe(20, "native", "broad"),
}
NATIVE = "the image tower's own text tower"
HEADLINES = {
    "native": NATIVE,
    "infonce": "InfoNCE",
    "distilled_captions": "+ the captions once more as texts",
    "distilled_broad": "+ broad texts",
}


def train(recipe: Recipe, data: Data, *, name: str, seed: int) -> Path:
    """Train a head as `vlm pretrain` does, and return its run folder."""
    texts = (str(data.texts[recipe.texts]),) if recipe.texts else ()
    # vectors alone, without the structure of batches: the teacher's noise, which is large here, makes that structure mostly noise
    distill = DistillConfig(teacher=recipe.teacher, structure=0.0, weight=10.0, texts=texts, texts_weight=30.0, texts_batch_size=TEXTS_A_STEP)
    stage = ContrastiveStage(
        name="align",
        dataset=str(data.train),
        lr=HeadRates(text_head=2e-3, scale=1e-3),
        global_batch_size=BATCH,
        epochs=recipe.epochs,
        warmup_ratio=0.05,
        weight_decay=1e-4,
        encode_batch_size=256,
        distill=distill,
    )
    model = DualEncoderConfig(name=name, image="world-image", text="world-llm-text", text_head=HEAD)
    root = data.folder
    config = ContrastiveConfig(model=model, stage=stage, seed=seed, run_root=root / "runs", data_root=root, device="cpu", precision="fp32")
    run = vlm.train(config)
    assert run is not None  # the main process, and no dry run
    return run


def measure(data: Data, models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Recall and accuracy of each model."""
    embedders: list[Any] = [NamedEmbedder(name, model.encode_image, model.encode_text) for name, model in models.items()]
    held_out, classes = open_captioned(str(data.held_out), data_root=data.folder), data.never_pictured()
    searched = evaluate_retrieval(embedders, held_out, batch_size=512, resamples=1)
    classified = evaluate_zero_shot(embedders, classes, prompts_of(classes.class_names, SINGLE_TEMPLATES), batch_size=512, resamples=1)
    return {
        found.model: {"recall_at_5": found.scores["image_retrieval_recall@5"].value, "accuracy": named.scores["acc1"].value}
        for found, named in zip(searched.results, classified.results, strict=True)
    }


def report(rows: dict[str, dict[str, float]], seconds: dict[str, float], *, quick: bool, seed: int) -> None:
    """A table, then one line of JSON."""
    table = Table("head between image tower and LLM", "epochs", "R@5, pictured", "accuracy, never pictured", "CPU s", title=f"seed {seed}")
    for name, row in rows.items():
        epochs = f"{RECIPES[name].epochs:g}" if name in RECIPES else ""
        table.add_row(name, epochs, f"{row['recall_at_5']:.3f}", f"{row['accuracy']:.4f}", f"{seconds[name]:.1f}" if name in seconds else "")
    Console(highlight=False, width=120).print(table)
    result = {f"{key}_{metric}": round(value, 4) for key, name in HEADLINES.items() if name in rows for metric, value in rows[name].items()}
    print(json.dumps(result | {"chance_accuracy": 1 / CLASSES, "cpu_seconds": round(time.process_time(), 1), "quick": quick, "seed": seed}))


def main() -> None:
    """Draw the world, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less data, and the rows of the JSON line alone")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the training")
    settings = parser.parse_args()
    torch.set_num_threads(1)  # the same sums everywhere; CPU seconds are those of the work
    world = World(settings.seed)
    register(world)
    recipes = {name: recipe for name, recipe in RECIPES.items() if not settings.quick or name in HEADLINES.values()}
    models, seconds = {NATIVE: vlm.load("world", device="cpu", precision="fp32")}, {}
    with tempfile.TemporaryDirectory() as root:
        data = Data(world, Path(root), QUICK if settings.quick else FULL)
        for number, (name, recipe) in enumerate(recipes.items()):
            start = time.process_time()
            run = train(recipe, data, name=f"head-{number}", seed=settings.seed)
            seconds[name] = time.process_time() - start
            models[name] = vlm.load(run, device="cpu", precision="fp32")
        rows = measure(data, models)
    report(rows, seconds, quick=settings.quick, seed=settings.seed)


if __name__ == "__main__":
    main()

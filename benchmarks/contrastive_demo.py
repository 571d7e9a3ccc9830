"""The demo's contrastive model with and without distillation: recall on emoji whose names were held out, over several seeds. Results: contrastive_demo.md.

    python benchmarks/contrastive_demo.py --seeds 5
    python benchmarks/contrastive_demo.py --group llm --seeds 5 [--quick]

Every variant of a group has the same heads, data, batches, steps and rates; what differs is the teacher and the texts without images that it is asked about.

- `minilm`: the demo's model itself. Text encoder and teacher are both MiniLM.
- `llm`: the setting of APE, APD and ProCLIP. A pair is trained first, and becomes an image encoder with a text encoder of its own. An LLM, whose space is
  another one, then takes the place of that text encoder; pictures show some of the concepts. Prints one line of JSON as well.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import vlm
from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import ImageSpec, PooledImage, build_image
from vlm.backbones.language.smollm import packaged_folder
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text import sentence as minilm
from vlm.commands import preprocess
from vlm.conf.contrastive import ContrastiveConfig, DistillConfig, DualEncoderConfig, HeadConfig, HeadRates
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.data.benchmarks.captioned import open_captioned
from vlm.data.benchmarks.prompts import SINGLE_TEMPLATES, prompts_of
from vlm.models.checkpoint import find_checkpoint

METRICS = [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)]
APE = HeadConfig(kind="ape", dropout=0.1, normalize_input="standardize")  # APE's and APD's shape: four layers, from a random start


def other_names(known: set[str]) -> list[str]:
    """Names of emoji that are no part of the dataset (flags, signs, joined sequences), without skin tones."""
    import emoji

    names = {about["en"].strip(":").replace("_", " ") for about in emoji.EMOJI_DATA.values()}
    return sorted(name for name in names - known if "skin tone" not in name)


def write_names(folder: Path, data_root: Path) -> dict[str, str]:
    """Two files of names without images, each name in the generic templates: without the held-out names, and with them."""
    train, test = (list(open_captioned(f"twemoji@{split}", data_root=data_root).captions) for split in ("train", "test"))
    unseen = train + other_names({*train, *test})
    specs = {}
    for label, names in (("without", unseen), ("with", unseen + test)):
        path = folder / f"names-{label}.txt"
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
        specs[label] = f"classes:{path}"
    return specs


def variants(names: dict[str, str]) -> dict[str, tuple[HeadConfig, DistillConfig]]:
    """Text heads and what they are told, by name."""
    teacher = CONTRASTIVE_PRESETS["ape-demo/align"].stage.distill
    told = {
        "plain": DistillConfig(),
        "distilled on captions": teacher,
        "and on names, none held out": replace(teacher, texts=(names["without"],)),
        "and on names, held-out ones too": replace(teacher, texts=(names["with"],)),
    }
    linear = CONTRASTIVE_PRESETS["ape-demo/align"].model.text_head
    heads = {"linear from the identity": linear, "four layers from random": APE}
    listed = {f"{head}: {how}": (config, distill) for head, config in heads.items() for how, distill in told.items()}
    return {"no text head": (HeadConfig(), DistillConfig()), **listed}


def demo_rows(root: Path, data_root: Path) -> Iterator[tuple[str, ContrastiveConfig]]:
    """The rows of the demo's own model."""
    preset = CONTRASTIVE_PRESETS["ape-demo/align"]
    for name, (head, distill) in variants(write_names(root, data_root)).items():
        rates = replace(preset.stage.lr, text_head=None if head.kind == "identity" else preset.stage.lr.text_head)
        yield name, replace(preset, model=replace(preset.model, text_head=head), stage=replace(preset.stage, distill=distill, lr=rates))


# An LLM in the place of the text encoder

PAIR, FEW = "the pair itself", "a tenth of the pictures"
QUICK = ("plain", "and on names, none held out")
INSTRUCTION = "This is a picture of"  # is seen and not pooled: what a decoder says of its first token is the same for every text
LLM_HEAD = HeadConfig(kind="ape", num_layers=2, normalize_input="standardize", dropout=0.1)
LLM_STEPS, LLM_RATE, LLM_DECAY = 160, 3e-3, 1e-4
PICTURED = 0.1  # of the training pictures, in the rows of few concepts
NUM_WORDS = 3_000


def register(pair: Path) -> None:
    """Add a trained pair to the registries as `emoji-image` and `emoji-text`.

    Args:
        pair: A checkpoint of the demo's model without text head; MiniLM is its text encoder as it is.
    """
    tower = IMAGE[CONTRASTIVE_PRESETS["ape-demo/align"].model.image]

    def image(spec: ImageSpec, load: Load) -> PooledImage:
        heads = vlm.load(pair, device="cpu", precision="fp32").heads
        return PooledImage(spec, build_image(tower, replace(load, source=tower.source)).tower, projection=heads.image_head)

    IMAGE.add("emoji-image", replace(tower, build=image, source=str(pair), width=TEXT["all-minilm-l6-v2-text"].width))
    TEXT.add("emoji-text", TEXT["all-minilm-l6-v2-text"])


@dataclass(frozen=True)
class LLMData:
    """Files of the second group.

    Attributes:
        all: The training pictures.
        few: A tenth of them.
        names: Names in a template, by whether the held-out ones are among them.
        words: Words of MiniLM's vocabulary, without the held-out names.
    """

    all: str
    few: str
    names: dict[str, str]
    words: str

    @classmethod
    def write(cls, folder: Path, data_root: Path, *, quick: bool) -> "LLMData":
        """Write them."""
        train = open_captioned("twemoji@train", data_root=data_root)
        test = list(open_captioned("twemoji@test", data_root=data_root).captions)
        rows = [
            {"image": str(Path(str(picture.source)).resolve()), "captions": [name]}
            for picture, name in zip(train.pictures, train.captions, strict=True)
        ]
        few = folder / "few.json"
        few.write_text(json.dumps(random.Random(0).sample(rows, round(PICTURED * len(rows)))), encoding="utf-8")
        unseen = [*train.captions, *([] if quick else other_names({*train.captions, *test}))]
        texts = {}
        for label, names in (("without", unseen), ("with", unseen + test)):
            path = folder / f"names-in-templates-{label}.txt"
            path.write_text("\n".join(text for prompts in prompts_of(names, SINGLE_TEMPLATES) for text in prompts), encoding="utf-8")
            texts[label] = str(path)
        words = folder / "words.txt"
        words.write_text("\n".join(some_words(without=test)), encoding="utf-8")
        return cls("twemoji", str(few), texts, str(words))


def some_words(*, without: Sequence[str]) -> list[str]:
    """NUM_WORDS whole words of MiniLM's vocabulary."""
    vocabulary = (minilm.packaged_folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in vocabulary if len(word) >= 3 and word.isascii() and word.isalpha() and word not in without]
    return random.Random(0).sample(words, NUM_WORDS)


def told_of(data: LLMData) -> dict[str, DistillConfig]:
    """What the LLM's head learns besides its pairs, by name."""
    teacher = DistillConfig(teacher="native", structure=0.0, weight=10.0, texts_weight=30.0, texts_batch_size=256)
    return {
        "plain": DistillConfig(),
        "distilled on captions": teacher,
        "and on names, none held out": replace(teacher, texts=(data.names["without"],)),
        "and on names, held-out ones too": replace(teacher, texts=(data.names["with"],)),
        "on words in place of names": replace(teacher, texts=(data.words,)),
        "on names, held-out ones too, with the structure term": replace(teacher, texts=(data.names["with"],), structure=1.0),
    }


def llm_rows(root: Path, data_root: Path, *, quick: bool) -> Iterator[tuple[str, ContrastiveConfig]]:
    """The pair, which is the ceiling, then the LLM in the place of its text encoder."""
    preset = CONTRASTIVE_PRESETS["ape-demo/align"]
    stage = replace(preset.stage, distill=DistillConfig(), lr=replace(preset.stage.lr, text_head=None))
    pair = replace(preset, model=replace(preset.model, name="emoji-pair", text_head=HeadConfig()), stage=stage)
    yield PAIR, pair
    register(find_checkpoint(next(root.glob("emoji-pair+align+x0"))))
    data = LLMData.write(root, data_root, quick=quick)
    model = DualEncoderConfig(name="emoji-llm", image="emoji-image", text=f"decoder:{packaged_folder()}", text_head=LLM_HEAD, instruction=INSTRUCTION)
    rates = HeadRates(text_head=LLM_RATE, scale=LLM_RATE)
    stage = replace(stage, lr=rates, weight_decay=LLM_DECAY, max_steps=LLM_STEPS, epochs=1.0)
    for pictures, dataset, batch in ((FEW, data.few, 108), ("all pictures", data.all, 256))[: 1 if quick else 2]:
        for how, distill in told_of(data).items():
            if (quick or pictures != FEW) and how not in QUICK:
                continue
            yield f"{pictures}: {how}", replace(pair, model=model, stage=replace(stage, dataset=dataset, global_batch_size=batch, distill=distill))


# All groups


def measure(config: ContrastiveConfig) -> dict[str, float]:
    """Recalls of one run on the held-out pictures."""
    run = vlm.train(config)
    assert run is not None  # of one process
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: lines[-1][f"validation/{name}"] for name in METRICS}


def main() -> None:
    """Train every variant with every seed, and print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", choices=("minilm", "llm"), default="minilm")
    parser.add_argument("--quick", action="store_true", help="of the group llm, two rows of few pictures, and names of the training data alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--run-root", type=Path, default=Path("runs/contrastive-demo"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # among them, for each look-up, that the decoder has no prompt template
    preprocess.run(preprocess.Arguments("twemoji", root_dir=arguments.data_root))
    root = arguments.run_root / arguments.group
    root.mkdir(parents=True, exist_ok=True)
    rows = demo_rows if arguments.group == "minilm" else partial(llm_rows, quick=arguments.quick)
    print("| row | " + " | ".join(METRICS) + " | CPU s a run |")
    means = {}
    for name, config in rows(root, arguments.data_root):
        start = time.process_time()
        config = replace(config, data_root=arguments.data_root, run_root=root, overwrite=True)
        runs = [measure(replace(config, seed=seed)) for seed in range(1 if name == PAIR else arguments.seeds)]
        seconds = (time.process_time() - start) / len(runs)
        values = [[run[metric] for run in runs] for metric in METRICS]
        cells = [f"{statistics.fmean(some):.3f} ± {statistics.pstdev(some):.3f}" for some in values]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)
        means[name] = {metric: round(statistics.fmean(some), 4) for metric, some in zip(METRICS, values, strict=True)}
    print(json.dumps({"rows": means, "cpu_seconds": round(time.process_time(), 1)}))


if __name__ == "__main__":
    main()

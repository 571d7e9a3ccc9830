"""The demo's contrastive model with and without distillation: recall on emoji whose names were held out, over several seeds. Results: contrastive_demo.md.

    python benchmarks/contrastive_demo.py --seeds 5

Every variant of a group has the same heads, data, batches, steps and rates; what differs is the teacher and the texts without images that it is asked about.
"""

import argparse
import json
import logging
import statistics
import time
from dataclasses import replace
from pathlib import Path

import vlm
from vlm.commands import preprocess
from vlm.conf.contrastive import ContrastiveConfig, DistillConfig, HeadConfig
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.data.benchmarks.captioned import open_captioned

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


def measure(config: ContrastiveConfig) -> dict[str, float]:
    """Recalls of one run on the held-out pictures."""
    run = vlm.train(config)
    assert run is not None  # of one process
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: lines[-1][f"validation/{name}"] for name in METRICS}


def main() -> None:
    """Train every variant with every seed, and print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--run-root", type=Path, default=Path("runs/contrastive-demo"))
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    preprocess.run(preprocess.Arguments("twemoji", root_dir=arguments.data_root))
    arguments.run_root.mkdir(parents=True, exist_ok=True)
    preset = CONTRASTIVE_PRESETS["ape-demo/align"]
    print("| text head and teacher | " + " | ".join(METRICS) + " | CPU s a run |")
    for name, (head, distill) in variants(write_names(arguments.run_root, arguments.data_root)).items():
        rates = replace(preset.stage.lr, text_head=None if head.kind == "identity" else preset.stage.lr.text_head)
        stage = replace(preset.stage, distill=distill, lr=rates)
        config = replace(preset, model=replace(preset.model, text_head=head), stage=stage, overwrite=True)
        config = replace(config, data_root=arguments.data_root, run_root=arguments.run_root)
        start = time.process_time()
        runs = [measure(replace(config, seed=seed)) for seed in range(arguments.seeds)]
        seconds = (time.process_time() - start) / arguments.seeds
        values = [[run[metric] for run in runs] for metric in METRICS]
        cells = [f"{statistics.fmean(some):.3f} ± {statistics.pstdev(some):.3f}" for some in values]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""`vlm demo`: real data, two stages of training and a contrastive model, evaluation on held-out pictures, a report. Calls the product's own commands."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlm.conf.cli import parse
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.presets import PRESETS
from vlm.conf.schema import RunConfig, TrainConfig
from vlm.errors import ConfigError

if TYPE_CHECKING:
    from vlm.evaluate.held_out_retrieval import HeldOutRetrieval
    from vlm.evaluate.stopwatch import Stopwatch

Config = TypeVar("Config", bound=RunConfig)

CONTRASTIVE = {"distilled": "ape-demo", "plain": "ape-demo-plain"}  # what the summary calls them, and their presets
HELD_OUT = "twemoji@test"
EXPLANATION = (
    "Small heads between the same vision backbone and a sentence encoder were trained on emoji and their names; pictures and names here were not among them. "
    "Over several seeds a teacher neither helps nor hurts these heads: the text head starts as the identity and forgets little."
)
MIN_QUESTIONS, MIN_CAPTIONS = 6, 2  # two of each type of question; a caption is compared with another picture


@dataclass(frozen=True)
class Arguments:
    """Settings of the demo."""

    seed: int = 7
    """Seed of data order, initial weights and evaluation."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """fp32, bf16-mixed, bf16, or auto: bf16-mixed where the device is fast at it."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    run_root: Path = Path("runs")
    """Folder of the run folders; earlier demo runs with the same seed are replaced."""
    num_questions: int = 360
    """Held-out questions to answer, equally many of each type."""
    num_captions: int = 120
    """Held-out pictures to rank captions for, at least 2."""

    def __post_init__(self) -> None:
        if self.num_questions < MIN_QUESTIONS or self.num_captions < MIN_CAPTIONS:
            raise ConfigError(
                f"--num-questions is at least {MIN_QUESTIONS} and --num-captions at least {MIN_CAPTIONS}; got {self.num_questions} and {self.num_captions}."
            )


def main(argv: Sequence[str]) -> None:
    """Run the demo; ends with the line to chat."""
    from vlm.commands import preprocess, pretrain
    from vlm.evaluate.stopwatch import Stopwatch

    arguments = parse(Arguments, argv, prog="vlm demo", description=__doc__.split(": ", 1)[1])
    watch = Stopwatch()
    with watch("prepare", "Preparing easy-VQA: 5,000 pictures, 48,248 published questions"):
        for dataset in ("easy-vqa-single", "easy-vqa-captions", "easy-vqa-questions"):
            print(preprocess.in_one_line(preprocess.run(preprocess.Arguments(dataset, root_dir=arguments.data_root))))
    align, finetune = (_config(PRESETS[f"demo/{stage}"], arguments) for stage in ("align", "finetune"))
    with watch("align", "Align: the connector learns captions; vision backbone and language model are frozen"):
        pretrain.run(align)
    with watch("finetune", "Fine-tune: connector and a LoRA adapter of the language model learn questions and captions"):
        pretrain.run(replace(finetune, init_from=align.run_dir))
    with watch("contrastive", "Contrastive: heads between the vision backbone and a sentence encoder learn the names of emoji"):
        retrieval = _contrastive(arguments)
    _report(align, finetune, retrieval, arguments, watch)


def _config(preset: Config, arguments: Arguments) -> Config:
    same = {name: getattr(arguments, name) for name in ("seed", "device", "precision", "data_root", "run_root")}
    return replace(preset, overwrite=True, **same)


def _contrastive(arguments: Arguments) -> "HeldOutRetrieval":
    """Heads with and without distillation, trained and measured on pictures whose names were held out."""
    from vlm.commands import evaluate, preprocess, pretrain
    from vlm.evaluate.held_out_retrieval import HeldOutRetrieval

    print(preprocess.in_one_line(preprocess.run(preprocess.Arguments("twemoji", root_dir=arguments.data_root))))
    configs = {variant: _config(CONTRASTIVE_PRESETS[f"{model}/align"], arguments) for variant, model in CONTRASTIVE.items()}
    for config in configs.values():
        pretrain.run(config)
    models = {str(config.run_dir): variant for variant, config in configs.items()}
    folder = arguments.run_root / "demo" / "retrieval"
    measured = evaluate.retrieval(
        evaluate.RetrievalArguments(dataset=HELD_OUT, model=tuple(models), data_root=arguments.data_root, out=folder),
        partial(evaluate.load_embedder, device=arguments.device, precision=arguments.precision),
    )
    return HeldOutRetrieval(measured, models, EXPLANATION, f"{folder.name}/report.html")


def _report(align: TrainConfig, finetune: TrainConfig, retrieval: "HeldOutRetrieval", arguments: Arguments, watch: "Stopwatch") -> None:
    from vlm.commands.terminal import console
    from vlm.data.reader import open_dataset
    from vlm.evaluate.two_stage import Measurement, measure, write
    from vlm.models.checkpoint import open_model

    with watch("evaluate", f"Evaluate: {arguments.num_captions} held-out pictures, {arguments.num_questions} held-out questions"):
        results = measure(
            lambda run: open_model(run, device=arguments.device, precision=arguments.precision),
            align.run_dir,
            finetune.run_dir,
            lambda name: open_dataset(name, data_root=arguments.data_root),
            Measurement(arguments.num_captions, arguments.num_questions, arguments.seed),
        )
    folder = arguments.run_root / "demo"
    chat_line = f'vlm chat {finetune.run_dir} --image {results.answered[0].sample.images[0]} "what color is the shape?"'
    write(results, retrieval, folder, runs=(align.run_dir, finetune.run_dir), watch=watch, seed=arguments.seed, chat_line=chat_line)
    for table in (*results.tables(), retrieval.table()):
        console().print(table.for_terminal())
    print(f"{results.verdict()}\n\n{folder / 'report.html'}\n{folder / 'summary.json'}\n\n{activation()}Talk to it: {chat_line}")


def activation() -> str:
    """The line that lets a shell find `vlm`, where it does not: `make demo` runs it out of .venv/bin."""
    activate = Path(sys.prefix) / "bin" / "activate"
    return f"Put vlm on your PATH: source {os.path.relpath(activate)}\n" if activate.is_file() and not shutil.which("vlm") else ""

"""`vlm demo`: real data, two stages of training, evaluation on held-out pictures, a report. Calls the product's own commands; nothing in it is special."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.conf.cli import parse
from vlm.conf.presets import PRESETS
from vlm.conf.schema import TrainConfig
from vlm.errors import ConfigError

if TYPE_CHECKING:
    from vlm.evaluate.stopwatch import Stopwatch


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
    align, finetune = (_config(f"demo/{stage}", arguments) for stage in ("align", "finetune"))
    with watch("align", "Align: the connector learns captions; vision backbone and language model are frozen"):
        pretrain.run(align)
    with watch("finetune", "Fine-tune: connector and a LoRA adapter of the language model learn questions and captions"):
        pretrain.run(replace(finetune, init_from=align.run_dir))
    _report(align, finetune, arguments, watch)


def _config(preset: str, arguments: Arguments) -> TrainConfig:
    same = {name: getattr(arguments, name) for name in ("seed", "device", "precision", "data_root", "run_root")}
    return replace(PRESETS[preset], overwrite=True, **same)


def _report(align: TrainConfig, finetune: TrainConfig, arguments: Arguments, watch: "Stopwatch") -> None:
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
    write(results, folder, runs=(align.run_dir, finetune.run_dir), watch=watch, seed=arguments.seed, chat_line=chat_line)
    for table in results.tables():
        console().print(table.for_terminal())
    print(f"{results.verdict()}\n\n{folder / 'report.html'}\n{folder / 'summary.json'}\n\nTalk to it: {chat_line}")

"""`vlm evaluate zero-shot PATH --benchmark cifar10 --model NAME` and `vlm evaluate retrieval DATASET --model NAME`: contrastive models side by side.

Every other subcommand asks models that answer: `vlm.commands.evaluate_answers`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlm.commands import evaluate_answers
from vlm.commands.evaluate_overlap import TrainingData, overlap_notes
from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of_one
from vlm.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from vlm.evaluate.embedder import Embedder
    from vlm.evaluate.retrieval import Retrieval
    from vlm.evaluate.zero_shot import ZeroShot

SUBCOMMANDS = {
    "zero-shot": "Classify pictures by prompts: CIFAR-10, CIFAR-100, ImageNet, folders of classes.",
    "retrieval": "Find pictures by captions and captions by pictures: R@1, R@5, R@10.",
}


@dataclass(frozen=True, kw_only=True)
class Options(TrainingData):
    """What both evaluations share."""

    model: Annotated[tuple[str, ...], Repeated] = ()
    """A run, a checkpoint, or a published pair (clip-b32-224, llm2clip-b16-224, open-clip:<model>:<weights>); once for each model that is compared."""
    device: str = "auto"
    """Where models compute: auto, cuda, mps or cpu; all of them are in its memory at once."""
    precision: Literal["auto", "fp32", "bf16-mixed", "bf16"] = "auto"
    """Type of the encoders' weights: fp32 gives the vectors of the published models, bf16 half the memory; auto: bf16 where the device is faster with it."""
    out: Path | None = None
    """Folder of the results: report.html, details.json, and a JSON file a model. None: runs/evaluate/, and in it the names of evaluation and dataset."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    batch_size: int = 64
    """Pictures that are encoded at once."""
    workers: int = 4
    """Threads that decode pictures."""
    image_source: str = ""
    """Folder or hub id of the image encoder, if it is no longer where the run found it; with one --model."""
    text_source: str = ""
    """Folder or hub id of the text encoder, if it is no longer where the run found it; with one --model."""
    resamples: int = 1000
    """Draws of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is at least 1; got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class ZeroShotArguments(Options):
    """What to classify."""

    path: Annotated[Path, Positional]
    """The data: CIFAR's archive or its folder, ImageNet's folder, a folder of class folders, or a JSON file of rows with image and label."""
    benchmark: str = "folders"
    """cifar10, cifar100, imagenet1k or folders."""
    split: str | None = None
    """Split or folder below PATH; None: the benchmark's usual one."""
    names: Path | None = None
    """File of class names, .txt or .json; None: the benchmark's, names.txt or names.json in the folder, or the folders' names."""
    templates: str = ""
    """Prompt set (cifar, imagenet, generic, single), or a file with a template a line; {c} is the class name. Empty: the benchmark's."""


@dataclass(frozen=True, kw_only=True)
class RetrievalArguments(Options):
    """What to search."""

    dataset: Annotated[str, Positional]
    """A prepared dataset, Karpathy's dataset_*.json, a JSON file of rows with image and captions, or your own data."""
    split: str = ""
    """Split; empty: test of Karpathy's file, else the dataset's usual one."""
    image_root: Path | None = None
    """Folder below which the pictures of a JSON file lie; None: that of the file."""


def load_embedder(name: str, *, device: str = "auto", precision: str = "auto", **sources: str) -> "Embedder":
    """A dual encoder by name or path: a run, or a published pair.

    Args:
        name: What it is called.
        device: auto, cuda, mps or cpu.
        precision: fp32, bf16-mixed, bf16 or auto; see RunConfig.precision.
        sources: `image_source`, `text_source`: other folders for the encoders.

    Raises:
        ConfigError: If nothing answers to the name, or the device does not exist.
        CheckpointError: If its weights cannot be loaded, or it is a model that answers.
    """
    from vlm.evaluate.embedder import NamedEmbedder
    from vlm.models.open import open_dual

    model = open_dual(name, device=device, precision=precision, run_root=Path("runs"), **sources)
    embedder: Any = NamedEmbedder(name, model.encode_image, model.encode_text)
    return embedder


def main(argv: Sequence[str], *, load: "Callable[[str], Embedder] | None" = None) -> None:
    """Run one evaluation; `load` opens a model by its name, by default `load_embedder` on the device that is asked for."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm evaluate COMMAND DATA --model NAME [--model NAME ...] [arguments]", *_in_lines()]))
        return
    name, *rest = argv
    if name in evaluate_answers.BENCHMARKS:
        evaluate_answers.main(name, rest)
        return
    if name not in SUBCOMMANDS:
        raise UnknownNameError("command of `vlm evaluate`", name, SUBCOMMANDS | evaluate_answers.BENCHMARKS)
    evaluations: dict[str, tuple[type[Any], Callable[..., Any]]] = {
        "zero-shot": (ZeroShotArguments, zero_shot),
        "retrieval": (RetrievalArguments, retrieval),
    }
    kind, run = evaluations[name]
    arguments = parse(kind, rest, prog=f"vlm evaluate {name}", description=SUBCOMMANDS[name])
    if not arguments.model:
        raise ConfigError("Say which model: --model NAME, once for each.")
    sources = sources_of_one(arguments)
    run(arguments, load or partial(load_embedder, device=arguments.device, precision=arguments.precision, **sources))


def _in_lines() -> list[str]:
    """The subcommands, for the help."""
    kinds = {"Models that answer:": evaluate_answers.BENCHMARKS, "Contrastive models:": SUBCOMMANDS}
    return [line for heading, commands in kinds.items() for line in ("", heading, *(f"  {name:11} {what}" for name, what in commands.items()))]


def zero_shot(arguments: ZeroShotArguments, load: "Callable[[str], Embedder]") -> "ZeroShot":
    """Classify, and write the results."""
    from vlm.data.benchmarks import BENCHMARKS
    from vlm.data.benchmarks.prompts import prompts_of, templates_of
    from vlm.evaluate.zero_shot import evaluate_zero_shot

    spec = BENCHMARKS[arguments.benchmark]
    templates = templates_of(arguments.templates or spec.templates)
    data = spec.open(arguments.path, spec.split if arguments.split is None else arguments.split, arguments.names)
    notes = overlap_notes(arguments, arguments.model, data.pictures, data_root=arguments.data_root)
    measured = evaluate_zero_shot(
        [load(name) for name in arguments.model],
        data,
        prompts_of(data.class_names, templates),
        **how_to_measure(arguments),
    )
    _finish(arguments, "zero-shot", measured, notes)
    return measured


def retrieval(arguments: RetrievalArguments, load: "Callable[[str], Embedder]") -> "Retrieval":
    """Search, and write the results."""
    from vlm.data.benchmarks.captioned import open_captioned
    from vlm.evaluate.retrieval import evaluate_retrieval

    data = open_captioned(arguments.dataset, data_root=arguments.data_root, split=arguments.split, image_root=arguments.image_root)
    notes = overlap_notes(arguments, arguments.model, data.pictures, data_root=arguments.data_root)
    measured = evaluate_retrieval(
        [load(name) for name in arguments.model],
        data,
        **how_to_measure(arguments),
    )
    _finish(arguments, "retrieval", measured, notes)
    return measured


def how_to_measure(arguments: Options) -> dict[str, Any]:
    """What both evaluations are told alike."""
    from vlm.commands.preprocess import show_progress

    return {name: getattr(arguments, name) for name in ("batch_size", "workers", "resamples", "seed")} | {"progress": show_progress}


def _finish(arguments: Options, evaluation: str, measured: "ZeroShot | Retrieval", notes: Sequence[str]) -> None:
    from vlm.commands.terminal import console
    from vlm.evaluate.contrastive_report import file_name, score_table, write_results

    console().print(score_table(measured).for_terminal())
    if measured.unreadable:
        first = measured.unreadable[0]
        print(f"{len(measured.unreadable)} picture(s) cannot be read and are not measured; first {first.id}: {first.reason}")
    print("\n".join(notes), flush=True)
    folder = arguments.out or Path("runs/evaluate") / f"{evaluation}-{file_name(measured.data.name)}"
    print("\n".join(map(str, write_results(folder, measured, notes=notes))))

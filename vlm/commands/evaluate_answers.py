"""`vlm evaluate vqav2 DATA --model RUN` and its like: models that answer, side by side on a benchmark; `torchrun` shares the questions among ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlm.commands.evaluate_overlap import TrainingData, overlap_notes
from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of_one
from vlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vlm.data.questions.base import Question, QuestionSet, QuestionSpec
    from vlm.evaluate.answering import Evaluation, Settings
    from vlm.evaluate.asking import Answerer, Contender, Wording
    from vlm.evaluate.metrics.base import Measure
    from vlm.evaluate.predictions import Prediction, PredictionFolder
    from vlm.types import World

BENCHMARKS = {  # names of `vlm.data.questions`, written down so that the help loads nothing
    "vqav2": "VQAv2: accuracy over ten annotators; of a test split, the file to submit.",
    "gqa": "GQA: exact match.",
    "textvqa": "TextVQA: accuracy over ten annotators.",
    "textvqa-ocr": "TextVQA with the words of a text reader in the prompt, as LLaVA publishes it.",
    "vizwiz": "VizWiz: accuracy over ten annotators; of its test split, the file to submit.",
    "pope": "POPE: accuracy, precision, recall, F1, yes-rate.",
    "captions": "Captions: CIDEr, BLEU-4, ROUGE-L.",
    "scienceqa": "ScienceQA: multiple choice.",
    "mmmu": "MMMU: multiple choice and open questions.",
    "questions": "Your own rows with answers or options, or any dataset that training reads.",
}


@dataclass(frozen=True, kw_only=True)
class Arguments(TrainingData):
    """What to ask, and whom."""

    data: Annotated[str, Positional]
    """The benchmark's official file, or the folder of its files; for captions and questions a prepared dataset as well."""
    model: Annotated[tuple[str, ...], Repeated] = ()
    """A run folder, a checkpoint folder, or a unique prefix of a run's name; once for each model that is compared."""
    split: str = ""
    """Split; empty: the benchmark's usual one with public answers."""
    images: Path | None = None
    """Folder of the pictures; None: the usual places beside the data."""
    prompt: str | None = None
    """What is asked, with {question} and, for multiple choice, {choices} filled in, and \\n for a line break; None: the benchmark's usual wording."""
    method: Literal["generate", "likelihood"] = "generate"
    """generate: greedy answers; likelihood: the most likely of the letters, or of Yes and No."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens; None: the benchmark's usual one."""
    limit: int | None = None
    """So many questions, drawn at random; None: all."""
    out: Path | None = None
    """Folder of the results: report.html, details.json, and a folder of predictions for each model. None: runs/evaluate/, and in it the names of both."""
    overwrite: bool = False
    """Ask everything again. Otherwise predictions that are there are kept, and only what is missing is asked."""
    batch_size: int = 8
    """Prompts at once, on each device; halved where memory is short."""
    workers: int = 4
    """Threads that decode pictures."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """fp32, bf16-mixed, bf16 or auto."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it; with one --model."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it; with one --model."""
    resamples: int = 1000
    """Draws of the bootstrap."""
    seed: int = 0
    """Seed of --limit, of the bootstrap and of the choice of cases."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "resamples", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is at least 1; got {value}.")


Find = Callable[[str, Arguments, "World"], "Contender"]


def find_contender(name: str, arguments: Arguments, world: "World") -> "Contender":
    """A trained model by name, not loaded yet: hashes of its files tell it apart from others.

    Raises:
        ConfigError: If nothing or more than one run answers to the name.
        CheckpointError: If the run has no checkpoint, or is a dual encoder.
    """
    from vlm.conf.schema import VisionLanguageConfig
    from vlm.data.manifest import file_sha256
    from vlm.distributed.launch import choose_precision
    from vlm.evaluate.asking import Contender, ModelAnswerer
    from vlm.models.checkpoint import MODEL, WEIGHTS, find_checkpoint, open_model, read_manifest

    folder = find_checkpoint(name, run_root=arguments.run_root)
    if not isinstance(read_manifest(folder).config, VisionLanguageConfig):
        raise CheckpointError(f"{name} is a dual encoder, which answers no questions. Measure it with `vlm evaluate zero-shot` or `retrieval`.")
    sources = sources_of_one(arguments)
    precision = choose_precision(arguments.precision, world.device)
    files = {f"{file} sha256": file_sha256(folder / file) for file in (MODEL, WEIGHTS) if world.is_main and (folder / file).is_file()}

    def open_it() -> "Answerer":
        return ModelAnswerer(open_model(folder, device=world.device.type, precision=precision, run_root=arguments.run_root, **sources))

    return Contender(name, {**files, "precision": precision}, open_it)


def main(benchmark: str, argv: Sequence[str], *, find: Find = find_contender) -> None:
    """Ask, measure, and write the results."""
    arguments = parse(Arguments, argv, prog=f"vlm evaluate {benchmark}", description=BENCHMARKS[benchmark])
    if not arguments.model:
        raise ConfigError("Say which model: --model RUN, once for each.")
    sources_of_one(arguments)
    from vlm.data.questions import QUESTIONS
    from vlm.data.questions.base import Source, pictures_of, refuse_unusable
    from vlm.distributed.launch import launch
    from vlm.evaluate.answering import chosen
    from vlm.evaluate.asking import refuse_equal_contenders

    spec = QUESTIONS[benchmark]
    whole = refuse_unusable(spec.open(Source(arguments.data, arguments.split, arguments.images, arguments.data_root)), origin=arguments.data)
    data = chosen(whole, arguments.limit, seed=arguments.seed)
    settings = settings_of(arguments, spec, data)
    world = launch(arguments.device)
    contenders = [find(name, arguments, world) for name in arguments.model]
    refuse_equal_contenders(contenders)
    trained: list[str] = []
    if world.is_main:
        trained = overlap_notes(arguments, arguments.model, pictures_of(data.questions), data_root=arguments.data_root, run_root=arguments.run_root)
    evaluate(benchmark, arguments, whole, data, settings, contenders, world, trained)


def settings_of(arguments: Arguments, spec: "QuestionSpec", data: "QuestionSet") -> "Settings":
    """How questions are asked.

    Raises:
        ConfigError: If the prompt leaves out the question, or likelihoods are asked for where there is nothing to compare.
    """
    from vlm.evaluate.answering import Settings, refuse_without_candidates
    from vlm.evaluate.asking import Wording, refuse_unasked

    wording = Wording(spec.prompt, spec.choice, spec.open_prompt)
    if arguments.prompt is not None:
        wording = replace(wording, prompt=arguments.prompt.replace("\\n", "\n"), open_prompt="")
    refuse_unasked(wording, data.questions)
    if arguments.method == "likelihood":
        refuse_without_candidates(data.questions)
    return Settings(
        wording=wording,
        method=arguments.method,
        max_new_tokens=arguments.max_new_tokens or spec.max_new_tokens,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )


def evaluate(
    benchmark: str,
    arguments: Arguments,
    whole: "QuestionSet",
    data: "QuestionSet",
    settings: "Settings",
    contenders: Sequence["Contender"],
    world: "World",
    trained: Sequence[str],
) -> None:
    """Ask one model after the other; then the main process measures all of them, and notes what was `trained` on."""
    from vlm.commands.preprocess import show_progress
    from vlm.data.questions import QUESTIONS
    from vlm.evaluate.answering import measure_all, predict
    from vlm.evaluate.contrastive_report import file_name
    from vlm.evaluate.metrics import MEASURES
    from vlm.evaluate.predictions import PredictionFolder

    folder = arguments.out or Path("runs/evaluate") / f"{benchmark}-{file_name(data.name)}"
    folders = {contender.name: PredictionFolder(folder / file_name(contender.name)) for contender in contenders}
    with _reserved(folder, world):
        made = {
            contender.name: predict(
                contender, data, settings, folders[contender.name], world=world, overwrite=arguments.overwrite, progress=show_progress
            )
            for contender in contenders
        }
        if world.is_main:
            measure = MEASURES[data.measure or QUESTIONS[benchmark].measure]
            evaluation = measure_all(data, made, measure, resamples=arguments.resamples, seed=arguments.seed)
            notes = [measure.note] if evaluation.results[0].scores else ["References are not published: there are no numbers."]
            if len(data.questions) < len(whole.questions):
                notes.append(f"{len(data.questions):,} of {len(whole.questions):,} questions, drawn at random (--limit).")
            notes += trained
            write_predictions(evaluation, made, measure, folders, submit=len(data.questions) == len(whole.questions))
            finish(folder, evaluation, settings, arguments, notes)


@contextmanager
def _reserved(folder: Path, world: "World") -> Iterator[None]:
    """Nothing else evaluates into the folder meanwhile.

    Raises:
        ConfigError: If another process does, or the folder cannot be written.
    """
    from vlm.data.preparation.locks import locked
    from vlm.evaluate.predictions import REMEDY

    with ExitStack() as held:
        try:
            held.enter_context(locked([folder / ".lock"] if world.is_main else [], work=f"evaluates into {folder}"))
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}. {REMEDY}") from error
        yield


def write_predictions(
    evaluation: "Evaluation",
    made: Mapping[str, Sequence["Prediction"]],
    measure: "Measure",
    folders: Mapping[str, "PredictionFolder"],
    *,
    submit: bool,
) -> None:
    """One file of predictions a model, and one for the benchmark's server where it has one and all questions were asked."""
    import json

    from vlm.evaluate.answering import prediction_rows, submission_of
    from vlm.evaluate.predictions import REMEDY
    from vlm.pages import write_whole

    for result in evaluation.results:
        written = [folders[result.model].finish(prediction_rows(evaluation, made[result.model], result))]
        if submit and measure.submission is not None:
            content = submission_of(evaluation.data, made[result.model], measure)
            written.append(write_whole(folders[result.model].path / "submission.json", json.dumps(content, ensure_ascii=False) + "\n", remedy=REMEDY))
        print("\n".join(map(str, written)))


def finish(folder: Path, evaluation: "Evaluation", settings: "Settings", arguments: Arguments, notes: Sequence[str]) -> None:
    """Print the table, and write the page."""
    from vlm.commands.terminal import console
    from vlm.evaluate.generative_report import score_table, unasked_note, write_page

    if evaluation.results[0].scores:
        console().print(score_table(evaluation).for_terminal())
    print("\n".join([*notes, *unasked_note(evaluation)]))
    if evaluation.unasked:
        print(f"  first {evaluation.unasked[0].id}: {evaluation.unasked[0].reason}")
    shown: dict[str, Any] = {
        **_forms(settings.wording, evaluation.data.questions),
        "method": settings.method,
        **({"max_new_tokens": settings.max_new_tokens, "decoding": "greedy"} if settings.method == "generate" else {}),
        "data": arguments.data,
    }
    print("\n".join(map(str, write_page(folder, evaluation, settings.wording, shown, notes=notes, seed=arguments.seed))), flush=True)


def _forms(wording: "Wording", questions: Sequence["Question"]) -> dict[str, str]:
    """What was asked of questions with options and of those without, as far as there are any."""
    if not wording.open_prompt:
        return {"prompt": wording.prompt}
    forms = {True: ("prompt", wording.prompt), False: ("prompt without options", wording.open_prompt)}
    used = sorted({bool(question.choices) for question in questions}, reverse=True)
    return dict(forms[kind] for kind in used) if len(used) > 1 else {"prompt": forms[used[0]][1]}

"""Models answer the questions of a benchmark, each rank its share, and are measured side by side. Knows no benchmark's files and no single metric."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from vlm.data.questions.base import Question, QuestionSet
from vlm.distributed.collectives import from_main, wait_for_all
from vlm.errors import ConfigError, DataFormatError
from vlm.evaluate.asking import Answerer, Contender, Wording, likeliest, prompt_of
from vlm.evaluate.bootstrap import Score, with_intervals
from vlm.evaluate.embedder import Progress, Unreadable, no_progress
from vlm.evaluate.metrics.base import Measure
from vlm.evaluate.predictions import Prediction, PredictionFolder
from vlm.models.generate import Prompt
from vlm.types import World

FORMAT_VERSION = 1
Method = Literal["generate", "likelihood"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How questions are asked.

    Attributes:
        wording: What stands around them.
        method: generate: greedy answers; likelihood: the most likely of the candidates.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts at once; answers do not depend on it but for rounding, so an evaluation may go on with another one.
        workers: Threads that decode pictures, one batch ahead.
    """

    wording: Wording
    method: Method = "generate"
    max_new_tokens: int = 16
    batch_size: int = 8
    workers: int = 4


@dataclass(frozen=True)
class ModelResult:
    """What one model reached.

    Attributes:
        model: Its name.
        predictions: Its answers to the measured questions, in their order.
        points: Score of each answer.
        read: What was read off each.
        scores: Metrics with intervals and chance.
        groups: Metrics by what results are broken down by, and by group.
    """

    model: str
    predictions: Sequence[Prediction]
    points: Sequence[float]
    read: Sequence[str]
    scores: Mapping[str, Score]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Evaluation:
    """Models side by side.

    Attributes:
        data: All questions.
        questions: Those that were measured: every model was asked.
        results: One for each model; without metrics where references are not published.
        unasked: Questions that some model could not be asked, and why: a picture that cannot be read, a prompt that is too long.
        right_from: Score from which an answer counts as right; None where there is no right and wrong.
    """

    data: QuestionSet
    questions: Sequence[Question]
    results: Sequence[ModelResult]
    unasked: Sequence[Unreadable]
    right_from: float | None = None


def fingerprint_of(questions: Sequence[Question]) -> str:
    """SHA-256 of questions, references and names of pictures; not of the pictures themselves."""
    digest = hashlib.sha256()
    for question in questions:
        row = asdict(question) | {"images": [image.name for image in question.images]}
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def settings_of(data: QuestionSet, contender: Contender, settings: Settings) -> dict[str, Any]:
    """What predictions depend on."""
    return {
        "format_version": FORMAT_VERSION,
        "data": data.name,
        "num_questions": len(data.questions),
        "questions_sha256": fingerprint_of(data.questions),
        **contender.identity,
        "wording": asdict(settings.wording),
        "method": settings.method,
        **({"max_new_tokens": settings.max_new_tokens} if settings.method == "generate" else {}),
    }


def predict(
    contender: Contender,
    data: QuestionSet,
    settings: Settings,
    folder: PredictionFolder,
    *,
    world: World,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Prediction]:
    """Predictions of one model: those that are in the folder, and the others, each rank its share. On all ranks; only the main one gets them.

    Args:
        contender: The model, which is loaded only if something is left to predict.
        data: The questions.
        settings: How they are asked.
        folder: Where predictions are kept.
        world: The processes of this run, which must all see the folder.
        overwrite: Throw away what is in the folder.
        progress: Shows how far the main process is.

    Raises:
        ConfigError: If the folder holds predictions of another evaluation, or the device has no room for a single prompt.
        DataFormatError: If no question can be asked.
    """
    answerer = contender.open() if overwrite else None  # a model that cannot be loaded replaces nothing
    if world.is_main:
        folder.begin(settings_of(data, contender, settings), overwrite=overwrite)
    made = from_main(set(folder.made()) if world.is_main else set(), world)
    left = [question for question in data.questions if question.id not in made]
    left.sort(key=lambda q: (len(q.images), q.candidates, len(settings.wording.text(q))), reverse=True)  # what needs most memory comes first
    own = left[world.rank :: world.size]
    if own:
        answerer = answerer or contender.open()
        with folder.part(world.rank) as write:
            for predictions in _answered(answerer, own, settings, progress if world.is_main else no_progress, contender.name):
                write(predictions)
    wait_for_all(world)
    if not world.is_main:
        return []
    predictions = folder.collect([question.id for question in data.questions])
    if all(made.error for made in predictions):
        raise DataFormatError(f"None of {len(predictions)} questions can be asked; the first: {predictions[0].error}")
    return predictions


def _answered(answerer: Answerer, questions: Sequence[Question], settings: Settings, progress: Progress, name: str) -> Iterator[list[Prediction]]:
    """Predictions batch by batch; the next batch's pictures are opened meanwhile. A batch compares one set of candidates."""
    batches = _batches(questions, settings)
    with ThreadPoolExecutor(settings.workers) as threads:

        def opened(batch: Sequence[Question]) -> list[Any]:
            return [threads.submit(_prompt_or_fault, question, settings.wording) for question in batch]

        ahead = opened(batches[0])
        for number, batch in enumerate(progress(batches, f"Asking {name}"), start=1):
            prompts = [future.result() for future in ahead]
            ahead = opened(batches[number]) if number < len(batches) else []
            faults = [
                Prediction(id=question.id, error=str(prompt))
                for question, prompt in zip(batch, prompts, strict=True)
                if isinstance(prompt, Exception)
            ]
            usable = [(question, prompt) for question, prompt in zip(batch, prompts, strict=True) if isinstance(prompt, Prompt)]
            yield faults + _answer(answerer, usable, settings)


def _batches(questions: Sequence[Question], settings: Settings) -> list[list[Question]]:
    batches: list[list[Question]] = []
    for question in questions:
        alike = batches and (settings.method == "generate" or batches[-1][-1].candidates == question.candidates)
        if not alike or len(batches[-1]) == settings.batch_size:
            batches.append([])
        batches[-1].append(question)
    return batches


def _prompt_or_fault(question: Question, wording: Wording) -> Prompt | DataFormatError:
    try:
        return prompt_of(question, wording)
    except DataFormatError as error:
        return error


def _answer(answerer: Answerer, asked: Sequence[tuple[Question, Prompt]], settings: Settings) -> list[Prediction]:
    """Predictions of a batch. One that the model refuses, or that does not fit into memory, is cut in two until the culprit is alone.

    Raises:
        ConfigError: If the device has no room for a single prompt.
    """
    if not asked:
        return []
    questions, prompts = [question for question, _ in asked], [prompt for _, prompt in asked]
    try:
        said = _say(answerer, questions, prompts, settings)
    except (DataFormatError, torch.OutOfMemoryError) as error:
        if len(asked) > 1:
            middle = len(asked) // 2
            return [made for half in (asked[:middle], asked[middle:]) for made in _answer(answerer, half, settings)]
        if isinstance(error, torch.OutOfMemoryError):
            raise ConfigError(
                f"The device has no room for the single prompt {questions[0].id!r}. Try --precision bf16, or another device."
            ) from error
        return [Prediction(id=questions[0].id, error=str(error))]
    return [
        Prediction(id=question.id, prompt=answerer.write(prompt.messages), answer=answer, log_probs=log_probs)
        for (question, prompt), (answer, log_probs) in zip(asked, said, strict=True)
    ]


def _say(
    answerer: Answerer, questions: Sequence[Question], prompts: Sequence[Prompt], settings: Settings
) -> Sequence[tuple[str, Mapping[str, float]]]:
    if settings.method == "likelihood":
        return likeliest(answerer, prompts, questions[0].candidates)
    return [(answer, {}) for answer in answerer.answer(prompts, settings.max_new_tokens)]


def refuse_without_candidates(questions: Sequence[Question]) -> None:
    """Make sure that each question has candidates to compare.

    Raises:
        ConfigError: If one has none.
    """
    without = [question.id for question in questions if not question.candidates]
    if without:
        raise ConfigError(
            f"{len(without)} of {len(questions)} questions have no candidates to compare, first {without[0]!r}. "
            "--method likelihood is for multiple choice and yes/no; use --method generate."
        )


def chosen(data: QuestionSet, limit: int | None, *, seed: int) -> QuestionSet:
    """So many questions, drawn at random, in their order; all of them without a limit.

    Raises:
        ConfigError: If the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is at least 1; got {limit}.")
    if limit is None or limit >= len(data.questions):
        return data
    places = torch.randperm(len(data.questions), generator=torch.Generator().manual_seed(seed))[:limit].sort().values.tolist()
    return QuestionSet(data.name, [data.questions[place] for place in places], data.measure)


def measure_all(
    data: QuestionSet, predictions: Mapping[str, Sequence[Prediction]], measure: Measure, *, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Metrics of all models on the questions that all of them were asked, with intervals over questions.

    Args:
        data: The questions.
        predictions: By model, in the order of the questions.
        measure: What answers are measured by.
        resamples: Draws of the bootstrap.
        seed: Its seed.

    Raises:
        DataFormatError: If no question was asked of every model.
    """
    faults: dict[str, str] = {}
    for made in predictions.values():
        for one in made:
            if one.error:
                faults.setdefault(one.id, one.error)
    kept = [place for place, question in enumerate(data.questions) if question.id not in faults]
    if not kept:
        raise DataFormatError(f"No question could be asked of every model; the first fault: {next(iter(faults.values()))}")
    questions = [data.questions[place] for place in kept]
    results = [_result(model, questions, [made[place] for place in kept], measure, resamples, seed) for model, made in predictions.items()]
    return Evaluation(data, questions, results, [Unreadable(id, reason) for id, reason in faults.items()], measure.right_from)


def _result(model: str, questions: Sequence[Question], made: Sequence[Prediction], measure: Measure, resamples: int, seed: int) -> ModelResult:
    if not questions[0].answers:
        return ModelResult(model, made, [], [], {}, {})
    measured = measure.measure(questions, [one.answer for one in made])
    scores = with_intervals(measured.metrics, len(questions), measured.chance, resamples=resamples, seed=seed)
    groups: dict[str, dict[str, list[int]]] = {}
    for place, question in enumerate(questions):
        for kind, group in question.groups.items():
            groups.setdefault(kind, {}).setdefault(group, []).append(place)
    by_group = {
        kind: {group: {**measured.metrics(torch.tensor(places)), "count": len(places)} for group, places in sorted(members.items())}
        for kind, members in groups.items()
    }
    return ModelResult(model, made, measured.scores, measured.read, scores, by_group)


def prediction_rows(evaluation: Evaluation, predictions: Sequence[Prediction], result: ModelResult) -> Iterator[dict[str, Any]]:
    """Rows of `predictions.jsonl`: id, prompt, answer, truth, score, what was read off the answer; or id and error."""
    places = {question.id: place for place, question in enumerate(evaluation.questions)}
    for question, made in zip(evaluation.data.questions, predictions, strict=True):
        if made.error:
            yield {"id": made.id, "error": made.error}
            continue
        row: dict[str, Any] = {"id": made.id, "prompt": made.prompt, "answer": made.answer, "truth": list(question.answers)}
        if result.points and made.id in places:
            row |= {"score": result.points[places[made.id]], "read": result.read[places[made.id]]}
        yield row | ({"log_probs": dict(made.log_probs)} if made.log_probs else {})


def submission_of(data: QuestionSet, predictions: Sequence[Prediction], measure: Measure) -> list[Mapping[str, object]] | dict[str, object]:
    """What the benchmark's server takes: every question, an empty answer where the model was not asked."""
    assert measure.submission is not None
    rows = [measure.submission(question, made.answer) for question, made in zip(data.questions, predictions, strict=True)]
    rows += [measure.submission(Question(id=id, text="", images=()), "") for id in data.not_asked]
    return {key: value for row in rows for key, value in row.items()} if measure.one_object else rows

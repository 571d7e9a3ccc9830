"""Models that answer, side by side: one HTML page with the worst cases as pictures, predictions as JSON lines, and files for the benchmarks' servers.

Nothing on the page is loaded from elsewhere. Knows numbers, answers and pictures, not how they came about.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlm.data.image import load_image
from vlm.data.questions.base import Question
from vlm.errors import DataFormatError
from vlm.evaluate.answering import Evaluation, ModelResult
from vlm.evaluate.asking import Wording
from vlm.evaluate.bootstrap import Score
from vlm.evaluate.report import Table
from vlm.evaluate.run_report import small_picture, without_placeholder
from vlm.pages import filled, write_whole

WORDS = {
    "bleu4": "BLEU-4",
    "cider": "CIDEr",
    "exact_match": "exact match",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "token_f1": "F1 of words",
    "yes_rate": "yes-rate",
}
NONE = "\N{EN DASH}"
WORST = 24  # cases on the page
PICTURES_A_CASE = 4
THUMBNAIL = 320  # pixels
LISTED = 20  # questions that could not be asked; all are in details.json
MOST_GROUPS = 60  # rows of a table of groups
REMEDY = "Name another folder with --out."


@dataclass(frozen=True)
class Said:
    """One model's answer on a card."""

    model: str
    answer: str
    read: str
    points: float


@dataclass(frozen=True)
class Case:
    """A question with its pictures, references and all answers.

    Attributes:
        id: The question.
        question: Its text.
        choices: Its options, each with its letter.
        truth: The references, repeated ones once, with how often they come.
        pictures: Data URLs, and whether their pixels should be seen.
        said: The answers.
    """

    id: str
    question: str
    choices: Sequence[str]
    truth: str
    pictures: Sequence[tuple[str, bool]]
    said: Sequence[Said]


def score_table(evaluation: Evaluation) -> Table:
    """Models side by side in percent, with intervals; chance in the last row where somebody can say what guessing reaches."""
    scores = evaluation.results[0].scores
    rows = [[result.model, *map(_with_interval, result.scores.values())] for result in evaluation.results]
    if not all(math.isnan(score.chance) for score in scores.values()):
        rows.append(["chance", *(_percent(score.chance) for score in scores.values())])
    return Table(f"{evaluation.data.name}: % with 95 % intervals", ("model", *map(metric_words, scores)), rows)


def group_tables(evaluation: Evaluation) -> list[Table]:
    """For each kind of group, the metrics of each model, and the mean over the groups in the last row."""
    tables = []
    for kind in evaluation.results[0].groups:
        metrics = list(evaluation.results[0].scores)
        rows: list[list[str]] = []
        for result in evaluation.results:
            groups = dict(list(result.groups[kind].items())[:MOST_GROUPS])
            label = [result.model] if len(evaluation.results) > 1 else []
            rows += [[group, *label, f"{values['count']:,.0f}", *(_percent(values[name]) for name in metrics)] for group, values in groups.items()]
            if len(result.groups[kind]) > MOST_GROUPS:
                rows.append([f"and {len(result.groups[kind]) - MOST_GROUPS} more, in details.json", *label, *[NONE] * (1 + len(metrics))])
            means = [sum(values[name] for values in result.groups[kind].values()) / len(result.groups[kind]) for name in metrics]
            rows.append(["mean of the groups", *label, NONE, *map(_percent, means)])
        columns = [kind, *(["model"] if len(evaluation.results) > 1 else []), "questions", *map(metric_words, metrics)]
        tables.append(Table(f"By {kind}", columns, rows))
    return tables


def metric_words(name: str) -> str:
    """A metric as tables call it."""
    return WORDS.get(name, name.replace("_", " "))


def _with_interval(score: Score) -> str:
    if math.isnan(score.value):
        return NONE
    if math.isnan(score.low):
        return _percent(score.value)
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{100 * share:.1f}"


def details(evaluation: Evaluation, settings: Mapping[str, Any], *, notes: Sequence[str]) -> dict[str, Any]:
    """What `details.json` holds: numbers with intervals and chance, groups, questions that could not be asked, settings."""
    return {
        "dataset": evaluation.data.name,
        "num_questions": len(evaluation.data.questions),
        "num_measured": len(evaluation.questions),
        "notes": list(notes),
        "settings": dict(settings),
        "unasked": [asdict(fault) for fault in evaluation.unasked],
        "models": {
            result.model: {
                "metrics": {name: _defined(asdict(score)) for name, score in result.scores.items()},
                "groups": {kind: {group: _defined(values) for group, values in groups.items()} for kind, groups in result.groups.items()},
            }
            for result in evaluation.results
        },
    }


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def write_page(
    folder: Path, evaluation: Evaluation, wording: Wording, settings: Mapping[str, Any], *, notes: Sequence[str], seed: int = 0
) -> list[Path]:
    """Write `details.json` and `report.html`.

    Args:
        folder: Where they go; made if it is missing.
        evaluation: What was measured.
        wording: What stands around questions.
        settings: How they were asked, by name.
        notes: What a reader of the numbers must know.
        seed: Seed of the choice among equally bad cases.

    Raises:
        ConfigError: If a file cannot be written.
    """
    content = json.dumps(details(evaluation, settings, notes=notes), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    page = filled(Path(__file__).with_name("generative_report.html.j2"), _page(evaluation, wording, settings, notes, seed))
    return [write_whole(folder / "details.json", content, remedy=REMEDY), write_whole(folder / "report.html", page, remedy=REMEDY)]


def _page(evaluation: Evaluation, wording: Wording, settings: Mapping[str, Any], notes: Sequence[str], seed: int) -> dict[str, Any]:
    measured = bool(evaluation.results[0].scores)
    return {
        "title": evaluation.data.name,
        "facts": f"{len(evaluation.questions):,} questions; {', '.join(result.model for result in evaluation.results)}",
        "notes": [*notes, *unasked_note(evaluation)],
        "unasked": evaluation.unasked[:LISTED],
        "num_unasked": len(evaluation.unasked),
        "table": score_table(evaluation) if measured else None,
        "groups": group_tables(evaluation) if measured else [],
        "prompts": [(result.model, result.predictions[0].prompt) for result in evaluation.results],
        "settings": {name.replace("_", " "): value for name, value in settings.items()},
        "cases_title": "The worst answers" if measured else "Answers",
        "cases": [case_of(evaluation, place, wording) for place in worst_places(evaluation.results, len(evaluation.questions), seed=seed)],
        "right_from": evaluation.right_from,
    }


def unasked_note(evaluation: Evaluation) -> list[str]:
    """How many questions are not measured; nothing without any."""
    if not evaluation.unasked:
        return []
    of = len(evaluation.data.questions)
    return [
        f"{len(evaluation.unasked):,} of {of:,} questions could not be asked and are not measured: pictures that cannot be read, or prompts that are too long."
    ]


def worst_places(results: Sequence[ModelResult], count: int, *, seed: int, most: int = WORST) -> list[int]:
    """Positions of the questions with the lowest mean score over the models; among equals, by chance."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if results[0].points:
        order.sort(key=lambda place: sum(result.points[place] for result in results))  # stable
    return order[:most]


def case_of(evaluation: Evaluation, place: int, wording: Wording) -> Case:
    """One question as a card."""
    question = evaluation.questions[place]
    said = [
        Said(
            result.model,
            result.predictions[place].answer,
            result.read[place] if result.read else "",
            result.points[place] if result.points else math.nan,
        )
        for result in evaluation.results
    ]
    choices = [wording.choice.format(letter=letter, choice=choice) for letter, choice in zip(question.letters, question.choices, strict=True)]
    return Case(question.id, without_placeholder(question.text), choices, truth_in_words(question), _pictures(question), said)


def truth_in_words(question: Question) -> str:
    """References, each once; how often, where several people gave it."""
    counts = Counter(question.answers)
    return "; ".join(answer if count == 1 else f"{answer} ({count})" for answer, count in counts.most_common())


def _pictures(question: Question) -> list[tuple[str, bool]]:
    shown = []
    for file in question.images[:PICTURES_A_CASE]:
        try:
            shown.append(small_picture(load_image(file), THUMBNAIL))
        except DataFormatError:  # it went away since the question was asked
            continue
    return shown

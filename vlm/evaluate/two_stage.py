"""What two stages of training achieved: captions after align, answers after fine-tune, each beside its controls. Used by the demo; knows no preset."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from vlm.data.sample import Sample
from vlm.evaluate.captioning import CaptionRanking, rank_captions
from vlm.evaluate.held_out_retrieval import HeldOutRetrieval
from vlm.evaluate.report import Table, curves_svg, read_metrics, write_report
from vlm.evaluate.stopwatch import Stopwatch, peak_rss_gb, versions
from vlm.evaluate.vqa import Answered, accuracy_by_type, answer_all, answer_blind, best_blind_answers, chance_by_type, exchange_images, truth_of
from vlm.models.vision_language import VisionLanguageModel

CLEARLY_BETTER = 0.05  # accuracy above both controls; about two standard errors of 300 questions
CARDS = 24  # pictures in the report


@dataclass(frozen=True)
class Measurement:
    """How much is measured.

    Attributes:
        num_captions: Held-out pictures to rank captions for.
        num_questions: Held-out questions to answer, equally many of each type.
        seed: Seed of their choice and of the exchange of pictures.
    """

    num_captions: int
    num_questions: int
    seed: int


@dataclass(frozen=True)
class QuestionScores:
    """Accuracy of one type of question.

    Attributes:
        accuracy: The model.
        shuffled_images: The model, half of the questions, each with another picture.
        question_only: The best answer from the question alone, learned from the training questions.
        chance: A uniform guess among the answers of this type.
        count: Questions.
    """

    accuracy: float
    shuffled_images: float
    question_only: float
    chance: float
    count: int

    @property
    def sees(self) -> bool:
        """True if the picture clearly helps."""
        return self.accuracy > max(self.question_only, self.shuffled_images) + CLEARLY_BETTER


@dataclass(frozen=True)
class Results:
    """Both stages' measurements, and the answers themselves."""

    captions: CaptionRanking
    questions: dict[str, QuestionScores]
    answered: Sequence[Answered]

    def tables(self) -> list[Table]:
        """One table a stage."""
        ranking = self.captions
        captions = [
            ["NLL of the true caption, right picture", f"{ranking.nll_matched:.2f} nats"],
            ["NLL of the true caption, other pictures", f"{ranking.nll_shuffled:.2f} nats"],
            ["true caption ranked first", f"{ranking.caption_accuracy:.2f}"],
            ["chance", f"{ranking.caption_chance:.2f}"],
        ]
        questions = [
            [kind, f"{s.accuracy:.2f}", f"{s.shuffled_images:.2f}", f"{s.question_only:.2f}", f"{s.chance:.2f}", str(s.count)]
            for kind, s in self.questions.items()
        ]
        columns = ("question type", "model", "pictures shuffled", "question alone", "chance", "questions")
        return [
            Table("Captions of held-out pictures after alignment", ("measure", "value"), captions),
            Table("Questions about held-out pictures after fine-tuning: share of exact matches", columns, questions),
        ]

    def verdict(self) -> str:
        """Sentences that say which types of questions the picture helped with, and which it did not."""
        gained = [kind for kind, scores in self.questions.items() if scores.sees]
        lost = [kind for kind in self.questions if kind not in gained]
        if not gained:
            return "Honestly: no type of question is answered clearly better than without the picture."
        modest = f" On {', '.join(lost)} questions it is not clearly better than the best answer from the question alone." if lost else ""
        return f"The model answers {', '.join(gained)} questions from the picture.{modest} One run, one seed, colored shapes: a small model on small data."


def measure(
    load: Callable[[Path], VisionLanguageModel], align: Path, finetune: Path, open_samples: Callable[[str], Sequence[Sample]], how: Measurement
) -> Results:
    """Measure both stages on held-out pictures of easy-VQA.

    Args:
        load: Gives the model of a run folder.
        align: Run of the first stage.
        finetune: Run of the second stage.
        open_samples: Gives a dataset by name.
        how: How much is measured.
    """
    pictures = choose(open_samples("easy-vqa-captions@test"), how.num_captions, seed=how.seed)
    all_captions = sorted({truth_of(sample) for sample in open_samples("easy-vqa-captions@train")})
    captions = rank_captions(load(align), pictures, all_captions)
    model = load(finetune)
    samples = choose_by_type(open_samples("easy-vqa-questions@test"), how.num_questions, seed=how.seed)
    answered = answer_all(model, samples)
    control = exchange_images(samples[: len(samples) // 2], seed=how.seed)  # far below the model, so fewer questions tell them apart
    shuffled = accuracy_by_type(answer_all(model, control))
    blind = accuracy_by_type(answer_blind(samples, best_blind_answers(open_samples("easy-vqa-questions@train"))))
    own, chance = accuracy_by_type(answered), chance_by_type(samples)
    counts = {kind: sum(item.sample.extra["type"] == kind for item in answered) for kind in own}
    scores = {kind: QuestionScores(own[kind], shuffled[kind], blind[kind], chance[kind], counts[kind]) for kind in own}
    return Results(captions, scores, answered)


def choose(samples: Sequence[Sample], count: int, *, seed: int) -> list[Sample]:
    """A random choice of samples, all of them if there are fewer."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count]
    return [samples[i] for i in order.tolist()]


def choose_by_type(samples: Sequence[Sample], count: int, *, seed: int) -> list[Sample]:
    """A random choice with equally many samples of each type, so that the rarest type is measured as well as the most frequent."""
    by_type: dict[str, list[Sample]] = defaultdict(list)
    for sample in choose(samples, len(samples), seed=seed):
        by_type[sample.extra["type"]].append(sample)
    chosen = [group[: count // len(by_type)] for group in by_type.values()]
    return [sample for together in zip_longest(*chosen) for sample in together if sample is not None]


def write(
    results: Results, retrieval: HeldOutRetrieval, folder: Path, *, runs: tuple[Path, Path], watch: Stopwatch, seed: int, chat_line: str
) -> None:
    """Write `summary.json` and `report.html`.

    Args:
        results: What was measured of both stages.
        retrieval: What was measured of the contrastive model.
        folder: Where they go; made if it is missing.
        runs: The run folders, for their loss curves.
        watch: Seconds by phase.
        seed: Seed of the whole.
        chat_line: The command that goes on from here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds = watch.rounded()
    summary = {
        "align": asdict(results.captions),
        "finetune": {kind: asdict(scores) for kind, scores in results.questions.items()},
        "contrastive": retrieval.summary() | {"seconds": seconds["contrastive"]},
        "seconds": seconds,
        "peak_rss_gb": round(peak_rss_gb(), 2),
        "seed": seed,
        "versions": versions(),
    }
    building = folder / "summary.json.tmp"
    building.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    building.rename(folder / "summary.json")
    write_report(
        folder / "report.html",
        title="A vision-language model from pip packages",
        summary=results.verdict(),
        tables=results.tables(),
        curves=curves_svg({run.name: read_metrics(run) for run in runs}),
        answered=results.answered[:CARDS],
        retrieval=retrieval,
        chat_line=chat_line,
    )

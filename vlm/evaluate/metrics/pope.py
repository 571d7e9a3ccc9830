"""POPE's yes and no (Li et al. 2023, arXiv:2305.10355): accuracy, precision, recall and F1 of "yes", and how often a model says it. Knows no model."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm.data.questions.base import Question
from vlm.evaluate.metrics.base import ACCURACY, Measure, Measured

NO = {"No", "not", "no"}


def yes_or_no(answer: str) -> str:
    """As the official script reads it: no if the first sentence has the word no, No or not; yes otherwise, whatever it says."""
    return "no" if NO & set(answer.split(".")[0].replace(",", "").split(" ")) else "yes"


def yes_no_metrics(said: Bool[Tensor, " n"], wanted: Bool[Tensor, " n"]) -> dict[str, float]:
    """Metrics of "yes" as the positive class; NaN where a denominator is 0.

    Args:
        said: Whether each answer is yes.
        wanted: Whether it should be.
    """
    hits, yes, positives = ((said & wanted).sum().item(), said.sum().item(), wanted.sum().item())
    return {
        ACCURACY: (said == wanted).double().mean().item(),
        "precision": hits / yes if yes else math.nan,
        "recall": hits / positives if positives else math.nan,
        "f1": 2 * hits / (yes + positives) if yes + positives else math.nan,
        "yes_rate": said.double().mean().item(),
    }


def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measured:
    """Answers to questions whose only reference is yes or no."""
    read = [yes_or_no(answer) for answer in answers]
    said, wanted = (torch.tensor([word == "yes" for word in words]) for words in (read, [question.answers[0] for question in questions]))

    def metrics(chosen: Int[Tensor, " n"]) -> Mapping[str, float]:
        return yes_no_metrics(said[chosen], wanted[chosen])

    share = wanted.double().mean().item()  # of a coin that says yes as often as not
    chance = {ACCURACY: 0.5, "precision": share, "recall": 0.5, "f1": share / (0.5 + share), "yes_rate": math.nan}
    return Measured((said == wanted).double().tolist(), metrics, chance, read)


SPECS = {
    "pope": Measure(
        measure=measure,
        note="Precision, recall and F1 are those of yes. An answer counts as yes unless its first sentence has the word no, No or not. "
        "Papers often give the mean of the three categories' F1.",
    )
}

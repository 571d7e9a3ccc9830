"""What a measure of answers is. Knows no metric and no model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from vlm.data.questions.base import Question

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Measured:
    """Answers, measured.

    Attributes:
        scores: Of each answer, 0 for wrong; what pages sort by.
        metrics: Metrics on a choice of answers, by their positions.
        chance: What guessing reaches in each metric; NaN where nobody can say.
        read: What was read off each answer: yes, a letter, the normalized answer.
    """

    scores: Sequence[float]
    metrics: Callable[[Int[Tensor, " n"]], Mapping[str, float]]
    chance: Mapping[str, float]
    read: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One way to measure answers.

    Attributes:
        measure: Questions with references, and the answers.
        submission: One row of the file that the benchmark's server takes, from the question and the answer; None where there is no such server.
        one_object: The server's file is one object with the members of all rows, instead of a list of rows.
        right_from: Score from which an answer counts as right; None where there is no right and wrong.
        note: What a reader of the numbers must know, in one sentence.
        aliases: Other names.
    """

    measure: Callable[[Sequence[Question], Sequence[str]], Measured]
    note: str
    submission: Callable[[Question, str], Mapping[str, object]] | None = None
    one_object: bool = False
    right_from: float | None = 0.5
    aliases: tuple[str, ...] = field(default=())


def mean_score(scores: Sequence[float], read: Sequence[str], *, chance: float = math.nan, name: str = ACCURACY) -> Measured:
    """A measure that is the mean over answers.

    Args:
        scores: Of each answer.
        read: What was read off each answer.
        chance: What guessing reaches.
        name: What the mean is called.
    """
    values = torch.tensor(scores, dtype=torch.float64)
    return Measured(scores, lambda chosen: {name: values[chosen].mean().item()}, {name: chance}, read)

"""Questions of the user's own: exact match and F1 of words, normalized as SQuAD does, the best over all references. Knows no model."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vlm.data.questions.base import Question
from vlm.evaluate.answer_match import exact_match, token_f1, words_of
from vlm.evaluate.metrics.base import Measure, Measured


def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measured:
    """The best match of each answer."""
    pairs = list(zip(questions, answers, strict=True))
    scores = torch.tensor(
        [[max(float(match(answer, wanted)) for wanted in question.answers) for question, answer in pairs] for match in (exact_match, token_f1)],
        dtype=torch.float64,
    )

    def metrics(chosen: Int[Tensor, " n"]) -> Mapping[str, float]:
        exact, f1 = scores[:, chosen].mean(1).tolist()
        return {"exact_match": exact, "token_f1": f1}

    return Measured(
        scores[1].tolist(), metrics, dict.fromkeys(("exact_match", "token_f1"), math.nan), [" ".join(words_of(answer)) for answer in answers]
    )


SPECS = {
    "short-answers": Measure(
        measure=measure,
        note="Exact match and F1 of words without letter case, punctuation and articles, as SQuAD counts them; the best of several references.",
    )
}

"""POPE by hand, with the rule of the official script."""

import math

import pytest
import torch

from vlm.data.questions.base import Question
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.metrics.pope import yes_no_metrics, yes_or_no


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("No.", "no"),
        ("no, there is none", "no"),
        ("There is not a dog", "no"),
        ("Yes. There is no cat", "yes"),  # the first sentence alone
        ("NO", "yes"),  # no, No and not are all that is looked for
        ("nothing", "yes"),
        ("", "yes"),
    ],
)
def test_an_answer_is_yes_unless_its_first_sentence_has_a_word_for_no(answer, read):
    assert yes_or_no(answer) == read


def test_metrics_by_hand():
    """3 true positives, 1 false positive, 4 true negatives, 2 false negatives."""
    questions = [Question(id=str(i), text="", images=(), answers=(label,)) for i, label in enumerate(["yes"] * 5 + ["no"] * 5)]
    measured = MEASURES["pope"].measure(questions, ["Yes"] * 3 + ["No"] * 2 + ["Yes"] + ["No"] * 4)
    wanted = {"accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 * 0.75 * 0.6 / (0.75 + 0.6), "yes_rate": 0.4}
    assert measured.metrics(torch.arange(10)) == pytest.approx(wanted)
    assert measured.scores == [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert measured.chance["accuracy"] == measured.chance["f1"] == 0.5


def test_what_has_no_denominator_is_not_a_number():
    none = torch.zeros(3, dtype=torch.bool)
    metrics = yes_no_metrics(none, none)
    assert metrics["accuracy"] == 1 and all(math.isnan(metrics[name]) for name in ("precision", "recall", "f1"))

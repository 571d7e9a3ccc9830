import pytest
import torch

from vlm.data.questions.base import Question
from vlm.evaluate.metrics import MEASURES


def test_the_best_reference_counts():
    questions = [Question(id="a", text="", images=(), answers=("a red ball", "ball")), Question(id="b", text="", images=(), answers=("two dogs",))]
    measured = MEASURES["short-answers"].measure(questions, ["The ball.", "dogs"])
    assert measured.metrics(torch.arange(2)) == pytest.approx({"exact_match": 0.5, "token_f1": (1 + 2 / 3) / 2})

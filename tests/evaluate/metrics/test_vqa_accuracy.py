"""Accuracy over annotators and the normalization before it: cases worked by hand from the official scripts, and facts of those scripts."""

import hashlib
import json
import math

import pytest

from vlm.data.questions.base import Question
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.metrics.vqa_accuracy import (
    CONTRACTIONS,
    evalai_normalized,
    gqa_accuracy,
    leave_one_out,
    process_digit_article,
    process_punctuation,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqav2_accuracy,
)

# Of the dictionary in vqaEval.py (GT-Vision-Lab/VQA, PythonEvaluationTools), entries with capitals left out: words are in lower case there as well.
OFFICIAL_CONTRACTIONS = "9540dcfd9682782c55fd90fcc8aa5106862b098d4dfd79dfb273593941405690"


def test_contractions_are_those_of_the_official_script():
    assert hashlib.sha256(json.dumps(CONTRACTIONS, sort_keys=True).encode()).hexdigest() == OFFICIAL_CONTRACTIONS


@pytest.mark.parametrize(
    ("text", "processed"),
    [
        ("t-shirt", "t shirt"),  # between letters: a space
        ("red, white", "red white"),  # beside a space: nothing
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a number with a comma makes every mark vanish
        ("u.s.", "us"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("." * 40, "." * 8),  # the scripts remove at most 32 full stops
    ],
)
def test_punctuation_becomes_a_space_or_nothing(text, processed):
    assert process_punctuation(text) == processed


@pytest.mark.parametrize(
    ("text", "processed"),
    [
        ("The Dog", "dog"),
        ("Two an TEN", "2 10"),
        ("none", "0"),
        ("dont  know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
    ],
)
def test_digits_articles_and_contractions(text, processed):
    assert process_digit_article(text) == processed


def test_the_processor_of_submissions_separates_possessives_and_drops_commas_and_question_marks_first():
    assert evalai_normalized("A Dog's bowl, isnt it?\n") == "dog 's bowl isn't it"


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_each_annotator_is_left_out_in_turn(same, accuracy):
    """1 of 10: for the 9 others one says it, 1/3 each; 3 of 10: the three of them have two others, 2/3 each."""
    assert leave_one_out("blue", ["blue"] * same + ["red"] * (10 - same)) == pytest.approx(accuracy)


def test_vqav2_normalizes_annotators_only_if_they_disagree():
    assert vqav2_accuracy("2", ["two"] * 9 + ["three"]) == pytest.approx(1)
    assert vqav2_accuracy("2", ["two"] * 10) == 0  # so the official script has it
    assert vqav2_accuracy("Two.", ["2"] * 10) == 1
    assert vqav2_accuracy("A t-shirt", ["t shirt", "t-shirt", "the t-shirt", *["shirt"] * 7]) == pytest.approx(0.9)


def test_textvqa_normalizes_all_and_vizwiz_the_answer_alone():
    annotators = ["The Dog's bowl"] * 10
    assert textvqa_accuracy("dog's bowl.", annotators) == 1
    assert vizwiz_accuracy("dog's bowl.", annotators) == 0
    assert vizwiz_accuracy("Unanswerable.", ["unanswerable"] * 2 + ["unsuitable"] * 8) == pytest.approx(0.6)


def test_gqa_is_exact_but_for_case_and_a_final_full_stop():
    assert [gqa_accuracy(answer, ["left"]) for answer in ("Left.", "left", "on the left", " left")] == [1, 1, 0, 0]


def test_answers_are_submitted_as_each_server_wants_them(tmp_path):
    question = Question(id="42", text="?", images=(tmp_path / "VizWiz_test_00000001.jpg",))
    assert MEASURES["vqav2"].submission(question, "Two dogs.") == {"question_id": 42, "answer": "2 dogs"}
    assert MEASURES["vizwiz"].submission(question, "A cat!") == {"image": "VizWiz_test_00000001.jpg", "answer": "cat"}
    assert MEASURES["gqa"].submission(question, "Yes.") == {"questionId": "42", "prediction": "yes"}


def test_a_measure_is_the_mean_and_nobody_knows_its_chance():
    questions = [Question(id=str(i), text="", images=(), answers=("left",)) for i in range(2)]
    measured = MEASURES["gqa"].measure(questions, ["Left.", "right"])
    assert (measured.scores, measured.read) == ([1.0, 0.0], ["left", "right"])
    assert math.isnan(measured.chance["accuracy"])

"""Scores of answers, worked by hand."""

from pathlib import Path

import pytest

from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.evaluate.vqa import (
    Answered,
    accuracy_by_type,
    answer_blind,
    best_blind_answers,
    chance_by_type,
    exchange_images,
    normalize,
    question_of,
    truth_of,
)
from vlm.messages import Message


def sample(question: str, answer: str, *, kind: str = "color", image: int = 0) -> Sample:
    messages = (Message("user", f"<image>\n{question}"), Message("assistant", answer))
    return Sample(id=f"{question}-{image}", images=(Path(f"{image}.png"),), messages=messages, extra={"type": kind})


def answered(truth: str, answer: str, *, kind: str = "color") -> Answered:
    return Answered(sample("what?", truth, kind=kind), "what?", truth, answer)


@pytest.mark.parametrize(
    ("answer", "right"), [("blue", True), (" Blue. ", True), ("BLUE", True), ("blue circle", False), ("", False), ("blu", False)]
)
def test_an_answer_is_right_if_it_is_equal_apart_from_case_and_full_stop(answer, right):
    assert answered("blue", answer).right is right


def test_normalize_removes_one_full_stop_only():
    assert normalize(" A red square. ") == "a red square"


def test_accuracy_is_counted_for_each_type():
    items = [answered("blue", "blue"), answered("red", "blue"), answered("red", "red"), answered("yes", "no", kind="yes_no")]
    assert accuracy_by_type(items) == {"color": pytest.approx(2 / 3), "yes_no": 0.0}


def test_samples_without_a_type_count_together():
    bare = Sample(id="0", images=(), messages=(Message("user", "what?"), Message("assistant", "blue")))
    assert accuracy_by_type([Answered(bare, "what?", "blue", "blue"), Answered(bare, "what?", "blue", "red")]) == {"all": 0.5}


def test_chance_is_one_of_the_answers_that_occur():
    samples = [sample("a", "blue"), sample("b", "Blue."), sample("c", "red"), sample("d", "yes", kind="yes_no"), sample("e", "no", kind="yes_no")]
    assert chance_by_type(samples) == {"color": 0.5, "yes_no": 0.5}


def test_the_best_blind_answer_is_the_most_frequent_and_ties_go_to_the_first():
    training = [
        sample("what color?", "red"),
        sample("what color?", "blue"),
        sample("what color?", "blue"),
        sample("what shape?", "circle"),
        sample("what shape?", "square"),
    ]
    assert best_blind_answers(training) == {"what color?": "blue", "what shape?": "circle"}


def test_a_blind_answer_to_an_unknown_question_is_wrong():
    held_out = [sample("what color?", "blue"), sample("why?", "no")]
    assert [item.right for item in answer_blind(held_out, {"what color?": "blue"})] == [True, False]


def test_question_and_truth_are_those_of_the_first_turn():
    talk = (Message("user", "<image>\nwhat?"), Message("assistant", "this"), Message("user", "why?"), Message("assistant", "so"))
    both = Sample(id="0", images=(Path("0.png"),), messages=talk)
    assert (question_of(both), truth_of(both)) == ("what?", "this")


def test_a_sample_without_an_answer_is_refused_by_name():
    with pytest.raises(DataFormatError, match="'lonely' has no answer"):
        truth_of(Sample(id="lonely", images=(), messages=(Message("user", "what?"),)))


@pytest.mark.parametrize("count", [2, 3, 50])
@pytest.mark.parametrize("seed", range(5))
def test_no_sample_keeps_its_own_picture(count, seed):
    samples = [sample("what?", f"{i}", image=i) for i in range(count)]
    exchanged = exchange_images(samples, seed=seed)
    own = {truth_of(item): item.images for item in samples}
    assert all(item.images != own[truth_of(item)] for item in exchanged)
    assert sorted(item.images for item in exchanged) == sorted(item.images for item in samples)
    assert [truth_of(item) for item in exchanged] == [truth_of(item) for item in samples]


def test_questions_about_one_picture_get_another_picture():
    samples = [sample(f"{i}?", "x", image=i // 4) for i in range(40)]
    own = {item.id: item.images for item in samples}
    for seed in range(5):
        assert all(item.images != own[item.id] for item in exchange_images(samples, seed=seed))


def test_samples_of_other_picture_counts_are_exchanged_among_themselves():
    bare = Sample(id="bare", images=(), messages=(Message("user", "why?"), Message("assistant", "so")))
    samples = [sample("a", "x", image=0), sample("b", "x", image=1), bare]
    assert [item.images for item in exchange_images(samples, seed=0)] == [(Path("1.png"),), (Path("0.png"),), ()]


def test_one_picture_alone_cannot_be_exchanged():
    with pytest.raises(DataFormatError, match="another picture"):
        exchange_images([sample("a", "x"), sample("b", "y")], seed=0)

"""Letters read off answers by each script's rule; cases worked by hand from the scripts."""

import pytest
import torch

from vlm.data.questions.base import Question
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.metrics.choices import any_letter, mmmu_letter, open_answer_is_right, scienceqa_letter

CHOICES, LETTERS = ("a cat", "the dog", "Paris"), ("A", "B", "C")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B. the dog", "B"),
        ("I think so. The answer is C.", "C"),
        ("B.", ""),
        ("(B)", ""),
        ("D", ""),
        ("The answer is A. The answer is B.", ""),
    ],
)
def test_scienceqa_takes_a_letter_alone_before_a_full_stop_or_in_its_sentence(answer, letter):
    assert scienceqa_letter(answer, CHOICES, LETTERS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B.", "B"),
        ("(A) or rather (C)", "C"),  # the last one
        ("A (B) C", "B"),  # parentheses go first
        ("Not A but B", "B"),
        ("B: the dog", ""),  # few words: options are not looked for
        ("well it must be the dog I think", "B"),
        ("", ""),
    ],
)
def test_mmmu_takes_the_last_letter_and_in_long_answers_the_last_option(answer, letter):
    assert mmmu_letter(answer, CHOICES, LETTERS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"), [("paris.", "C"), ("b", "B"), ("B)", "B"), ("(b) the dog", "B"), ("C: Paris", "C"), ("a dog", ""), ("Because", "")]
)
def test_own_questions_take_what_a_person_would(answer, letter):
    assert any_letter(answer, CHOICES, LETTERS) == letter


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("The result is 1,000.", ["1000"], True),
        ("x = 4.2", ["4.20"], True),
        ("It is a green tree", ["tree"], True),
        ("so the area is 12", ["2"], False),
        ("probably five", ["5", "five"], True),
        ("max", ["x"], False),  # a single letter is not found inside a word
    ],
)
def test_open_answers_of_mmmu(answer, references, right):
    assert open_answer_is_right(answer, references) == right


def test_unread_answers_are_wrong_and_counted_and_chance_is_one_of_the_options():
    questions = [Question(id=str(i), text="", images=(), answers=("A",), choices=("x", "y", "z", "w")) for i in range(3)]
    open_one = Question(id="open", text="", images=(), answers=("7",))
    measured = MEASURES["mmmu"].measure([*questions, open_one], ["A", "B", "hm", "It is 7"])
    assert measured.metrics(torch.arange(4)) == {"accuracy": 0.5, "unread": 0.25}
    assert measured.chance["accuracy"] == pytest.approx(3 / 4 / 4)
    assert measured.read == ["A", "B", "", "It is 7"]


def test_mmmu_is_submitted_as_letters_and_the_words_of_open_answers():
    choice, asked = Question(id="test_Art_1", text="?", images=(), choices=("a", "b")), Question(id="test_Art_2", text="?", images=())
    submit = MEASURES["mmmu"].submission
    assert [submit(choice, "It is (B)."), submit(choice, "no idea"), submit(asked, "5 cm")] == [
        {"test_Art_1": "B"},
        {"test_Art_1": ""},
        {"test_Art_2": "5 cm"},
    ]
    assert MEASURES["mmmu"].one_object

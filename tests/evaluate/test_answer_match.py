import pytest

from vlm.evaluate.answer_match import answer_metrics, exact_match, token_f1
from vlm.tracking import Shown


@pytest.mark.parametrize(
    ("generated", "reference", "equal"),
    [
        ("The red Circle.", "red circle", True),
        ("Yes", "yes.", True),
        ("a theory", "theory", True),
        ("circle red", "red circle", False),
        ("", "red", False),
        ("", "the", True),  # as in SQuAD: an article alone is nothing
    ],
)
def test_exact_match_is_squads(generated, reference, equal):
    assert exact_match(generated, reference) is equal


@pytest.mark.parametrize(
    ("generated", "reference", "f1"),
    [
        ("a red circle", "the red circle", 1.0),
        ("blue circle", "red circle", 0.5),
        ("red red circle", "red circle", 2 * (2 / 3) * 1 / (2 / 3 + 1)),  # precision 2/3, recall 1
        ("square", "red circle", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(generated, reference, f1):
    assert token_f1(generated, reference) == pytest.approx(f1)


def test_metrics_are_means_over_the_answers():
    shown = [Shown(None, "?", "red circle", answer) for answer in ("Red circle.", "blue circle")]
    assert answer_metrics(shown) == {"validation/exact_match": 0.5, "validation/token_f1": 0.75}
    assert answer_metrics([]) == {}

"""Questions are asked once, whatever happens meanwhile, and models are measured on the same ones."""

import math
from dataclasses import replace

import pytest
from color_answerer import COLORS, ColorAnswerer, contender
from PIL import Image

from vlm.data.questions.base import Question, QuestionSet
from vlm.errors import ConfigError, DataFormatError
from vlm.evaluate.answering import (
    Settings,
    chosen,
    fingerprint_of,
    measure_all,
    predict,
    prediction_rows,
    refuse_without_candidates,
    settings_of,
    submission_of,
)
from vlm.evaluate.asking import Wording
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.predictions import PredictionFolder
from vlm.types import World

SETTINGS = Settings(wording=Wording("{question}"), batch_size=3, workers=1)


@pytest.fixture
def data(tmp_path):
    """Six pictures of four colors, each with its question."""
    questions = []
    for i, color in enumerate([*COLORS, "red", "blue"]):
        Image.new("RGB", (8, 8), COLORS[color]).save(tmp_path / f"{i}.png")
        questions.append(
            Question(
                id=str(i), text=f"Color {i}?", images=(tmp_path / f"{i}.png",), answers=(color,) * 10, groups={"half": "first" if i < 3 else "second"}
            )
        )
    return QuestionSet("colors", questions)


def ask(data, folder, answerer, *, settings=SETTINGS, **others):
    return predict(contender(answerer=answerer), data, settings, PredictionFolder(folder), world=World.single(), **others)


def test_every_question_is_asked_in_batches_and_answered_in_order(data, tmp_path):
    answerer = ColorAnswerer()
    predictions = ask(data, tmp_path / "out", answerer)
    assert [made.answer for made in predictions] == [*COLORS, "red", "blue"]
    assert answerer.batches == [3, 3]
    assert predictions[0].prompt == "[user] <image>\nColor 0? [assistant]"


def test_a_killed_evaluation_goes_on_and_a_finished_one_loads_no_model(data, tmp_path):
    class Killed(ColorAnswerer):
        def answer(self, prompts, max_new_tokens):
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().answer(prompts, max_new_tokens)

    first = Killed()
    with pytest.raises(KeyboardInterrupt):
        ask(data, tmp_path / "out", first)
    second = ColorAnswerer()
    settings = Settings(wording=SETTINGS.wording, batch_size=2, workers=1)  # may differ: answers do not depend on it
    predictions = ask(data, tmp_path / "out", second, settings=settings)
    assert [made.answer for made in predictions] == [*COLORS, "red", "blue"]
    assert len(first.asked) == len(second.asked) == 3 and not first.asked & second.asked

    def fail():
        raise AssertionError("the model was loaded")

    kept = predict(type(contender())("color", contender().identity, fail), data, SETTINGS, PredictionFolder(tmp_path / "out"), world=World.single())
    assert kept == predictions
    with pytest.raises(AssertionError, match="the model was loaded"):  # a model that cannot be loaded replaces nothing
        predict(type(contender())("c", {}, fail), data, SETTINGS, PredictionFolder(tmp_path / "out"), world=World.single(), overwrite=True)
    assert ask(data, tmp_path / "out", ColorAnswerer(says=lambda image: "none")) == predictions
    asked_again = ColorAnswerer()
    ask(data, tmp_path / "out", asked_again, overwrite=True)
    assert len(asked_again.asked) == 6


def test_other_data_or_another_wording_is_refused(data, tmp_path):
    ask(data, tmp_path / "out", ColorAnswerer())
    with pytest.raises(ConfigError, match="questions_sha256 was"):
        ask(QuestionSet("colors", [*data.questions[:5], Question(id="5", text="Hue?", images=())]), tmp_path / "out", ColorAnswerer())
    with pytest.raises(ConfigError, match="wording was"):
        ask(data, tmp_path / "out", ColorAnswerer(), settings=Settings(wording=Wording("{question}!")))
    assert fingerprint_of(data.questions) != fingerprint_of(data.questions[:5])
    assert "max_new_tokens" not in settings_of(data, contender(), Settings(wording=SETTINGS.wording, method="likelihood"))


def test_pictures_that_cannot_be_read_and_prompts_that_are_refused_are_counted_not_dropped(data, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no picture")
    refused = Question(id="6", text="REFUSE", images=data.questions[0].images, answers=("red",) * 10)
    data = QuestionSet("colors", [*data.questions, refused])
    predictions = ask(data, tmp_path / "out", ColorAnswerer())
    assert [made.id for made in predictions if made.error] == ["1", "6"]
    evaluation = measure_all(data, {"color": predictions}, MEASURES["vqav2"], resamples=10)
    assert [fault.id for fault in evaluation.unasked] == ["1", "6"] and "cannot be read" in evaluation.unasked[0].reason
    assert [question.id for question in evaluation.questions] == ["0", "2", "3", "4", "5"]
    assert evaluation.results[0].scores["accuracy"].value == 1
    rows = list(prediction_rows(evaluation, predictions, evaluation.results[0]))
    assert rows[1].keys() == {"id", "error"}
    assert rows[0] | {"truth": 0} == {
        "id": "0",
        "prompt": "[user] <image>\nColor 0? [assistant]",
        "answer": "red",
        "truth": 0,
        "score": 1.0,
        "read": "red",
    }
    submitted = submission_of(replace(data, not_asked=["99"]), predictions, MEASURES["vqav2"])
    assert (submitted[1], submitted[-1]) == ({"question_id": 1, "answer": ""}, {"question_id": 99, "answer": ""})
    assert submission_of(data, predictions, MEASURES["mmmu"]) == {made.id: made.answer for made in predictions}
    Image.new("RGB", (8, 8), COLORS["green"]).save(tmp_path / "1.png")  # mended: asked again, and nothing else is but what was refused
    again = ColorAnswerer()
    assert ask(data, tmp_path / "out", again)[1].answer == "green" and len(again.asked) == 1


def test_a_batch_that_does_not_fit_into_memory_is_halved(data, tmp_path):
    answerer = ColorAnswerer(most=1)
    assert [made.answer for made in ask(data, tmp_path / "out", answerer)] == [*COLORS, "red", "blue"]
    assert answerer.batches == [3, 1, 2, 1, 1] * 2
    with pytest.raises(ConfigError, match=r"no room for the single prompt .* --precision bf16"):
        ask(data, tmp_path / "other", ColorAnswerer(most=0))


def test_nothing_that_can_be_asked_is_an_error(data, tmp_path):
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataFormatError, match="None of 6 questions can be asked; the first: There is no image file"):
        ask(data, tmp_path / "out", ColorAnswerer())


def test_likelihoods_compare_one_set_of_candidates_in_a_batch(data, tmp_path):
    questions = [
        Question(id=str(i), text=text, images=(), answers=("A",), choices=("x",) * n, candidates=tuple("ABC"[:n]))
        for i, (text, n) in enumerate([("AB?", 3), ("A?", 2), ("ABC A?", 3)])
    ]
    answerer = ColorAnswerer()
    settings = Settings(wording=SETTINGS.wording, method="likelihood", workers=1)
    predictions = ask(QuestionSet("letters", questions), tmp_path / "out", answerer, settings=settings)
    assert [made.answer for made in predictions] == ["C", "B", "B"] and answerer.batches == [2, 1]
    assert predictions[1].log_probs == {"A": -3.0, "B": -2.0}
    with pytest.raises(ConfigError, match="6 of 6 questions have no candidates to compare"):
        refuse_without_candidates(data.questions)


def test_models_are_measured_on_the_questions_that_all_of_them_were_asked(data, tmp_path):
    red = ColorAnswerer(says=lambda image: "red")
    predictions = {"color": ask(data, tmp_path / "a", ColorAnswerer()), "red": ask(data, tmp_path / "b", red)}
    evaluation = measure_all(data, predictions, MEASURES["vqav2"], resamples=50)
    color, red = evaluation.results
    assert (color.scores["accuracy"].value, red.scores["accuracy"].value) == (1, pytest.approx(1 / 3))
    assert red.scores["accuracy"].low < 1 / 3 < red.scores["accuracy"].high and math.isnan(red.scores["accuracy"].chance)
    assert red.groups == {"half": {"first": {"accuracy": pytest.approx(1 / 3), "count": 3}, "second": {"accuracy": pytest.approx(1 / 3), "count": 3}}}


def test_a_limit_draws_questions_by_the_seed(data):
    few = chosen(data, 3, seed=1)
    assert len(few.questions) == 3 and [q.id for q in few.questions] == sorted(q.id for q in few.questions)
    assert chosen(data, 3, seed=1) == few and chosen(data, 6, seed=1) is data
    assert len({tuple(q.id for q in chosen(data, 3, seed=seed).questions) for seed in range(5)}) > 1

"""The page and the files about models that answer."""

import json
import re

import pytest
from color_answerer import COLORS
from PIL import Image

from vlm.data.questions.base import Question, QuestionSet
from vlm.evaluate.answering import measure_all
from vlm.evaluate.asking import Wording
from vlm.evaluate.generative_report import case_of, group_tables, score_table, truth_in_words, worst_places, write_page
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.predictions import Prediction


def question(i, picture, **others):
    return Question(
        **{"id": f"q{i}", "text": f"Is it <b>red</b> {i}?", "images": (picture,), "answers": ("yes",), "groups": {"category": "ab"[i % 2]}} | others
    )


@pytest.fixture
def evaluation(tmp_path):
    Image.new("RGB", (400, 300), COLORS["red"]).save(tmp_path / "a.png")
    questions = [question(i, tmp_path / "a.png") for i in range(4)]
    said = {"good": ["Yes"] * 4, "poor": ["Yes", "No", "Yes", "No"]}
    data = QuestionSet("pope-mine", questions)
    predictions = {
        model: [Prediction(id=f"q{i}", prompt=f"USER: <image> {i} ASSISTANT:", answer=answer) for i, answer in enumerate(answers)]
        for model, answers in said.items()
    }
    predictions["good"][0] = Prediction(id="q0", error="The image file q0.png cannot be read.")
    return measure_all(data, predictions, MEASURES["pope"], resamples=20)


def test_tables_put_models_side_by_side_and_groups_below(evaluation):
    table = score_table(evaluation)
    assert table.columns == ("model", "accuracy", "precision", "recall", "F1", "yes-rate")
    assert table.rows[0][:2] == ["good", "100.0 (100.0 to 100.0)"] and table.rows[1][0] == "poor" and table.rows[1][1].startswith("33.3 (")
    assert table.rows[2] == ["chance", "50.0", "100.0", "50.0", "66.7", "\N{EN DASH}"]
    (groups,) = group_tables(evaluation)
    assert groups.columns[:4] == ["category", "model", "questions", "accuracy"]
    assert [row[:4] for row in groups.rows] == [
        ["a", "good", "1", "100.0"],
        ["b", "good", "2", "100.0"],
        ["mean of the groups", "good", "\N{EN DASH}", "100.0"],
        ["a", "poor", "1", "100.0"],
        ["b", "poor", "2", "0.0"],
        ["mean of the groups", "poor", "\N{EN DASH}", "50.0"],
    ]


def test_a_table_of_many_groups_says_how_many_it_leaves_out(tmp_path):
    questions = [question(i, tmp_path / "gone.png", groups={"type": f"t{i:03}"}) for i in range(70)]
    made = [Prediction(id=f"q{i}", prompt="p", answer="Yes") for i in range(70)]
    (table,) = group_tables(measure_all(QuestionSet("pope-mine", questions), {"m": made}, MEASURES["pope"], resamples=2))
    assert [row[0] for row in table.rows[-3:]] == ["t059", "and 10 more, in details.json", "mean of the groups"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_page_shows_the_worst_cases_with_their_pictures_the_prompt_and_what_was_not_asked(evaluation, tmp_path):
    assert {evaluation.questions[place].id for place in worst_places(evaluation.results, 3, seed=0, most=2)} == {"q1", "q3"}
    details, page = write_page(tmp_path / "out", evaluation, Wording("{question}"), {"prompt": "{question}", "max_new_tokens": 16}, notes=["A note."])
    content = json.loads(details.read_text(encoding="utf-8"))
    assert content["unasked"] == [{"id": "q0", "reason": "The image file q0.png cannot be read."}] and content["num_measured"] == 3
    assert content["models"]["good"]["metrics"]["yes_rate"]["chance"] is None
    text = page.read_text(encoding="utf-8")
    assert "USER: &lt;image&gt; 1 ASSISTANT:" in text and "Is it &lt;b&gt;red&lt;/b&gt; 1?" in text
    assert "1 of 4 questions could not be asked" in text and "A note." in text and "max new tokens" in text
    assert text.count('class="bad"') == 2 and text.count('class="good"') == 4
    assert len(re.findall("data:image/", text)) == 3 and not re.search(r"(src|href)=.http", text)


def test_captions_are_neither_right_nor_wrong(tmp_path):
    data = QuestionSet("captions", [question(i, tmp_path / "gone.png", answers=("a dog",), groups={}, text="") for i in range(2)])
    evaluation = measure_all(data, {"m": [Prediction(id=f"q{i}", prompt="p", answer="a cat") for i in range(2)]}, MEASURES["captions"], resamples=5)
    _, page = write_page(tmp_path, evaluation, Wording("Describe it."), {}, notes=[])
    text = page.read_text(encoding="utf-8")
    assert "CIDEr" in text and 'class="bad"' not in text and 'class="good"' not in text


def test_cards_show_a_question_without_the_place_of_its_only_picture(tmp_path):
    questions = [question(0, tmp_path / "gone.png", text="<image>\nRed?"), question(1, tmp_path / "gone.png", text="<image> or <image>?")]
    evaluation = measure_all(
        QuestionSet("mine", questions), {"m": [Prediction(id=f"q{i}", answer="no") for i in range(2)]}, MEASURES["pope"], resamples=2
    )
    assert [case_of(evaluation, place, Wording("{question}")).question for place in range(2)] == ["Red?", "<image> or <image>?"]


def test_references_of_several_people_are_counted():
    assert truth_in_words(Question(id="1", text="", images=(), answers=("red", "blue", "red"))) == "red (2); blue"


def test_without_references_there_are_answers_and_no_numbers(tmp_path):
    data = QuestionSet("test", [question(0, tmp_path / "gone.png", answers=(), groups={})])
    evaluation = measure_all(data, {"m": [Prediction(id="q0", prompt="p", answer="two dogs")]}, MEASURES["vqav2"])
    _, page = write_page(tmp_path, evaluation, Wording("{question}"), {}, notes=[])
    text = page.read_text(encoding="utf-8")
    assert "two dogs" in text and "Numbers" not in text and "<h2>Answers</h2>" in text

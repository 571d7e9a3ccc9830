import pytest
from PIL import Image

from vlm.data.questions.base import Question, QuestionSet, refuse_unusable
from vlm.errors import DataFormatError


def question(id, picture, **others):
    return Question(id=id, text="?", images=(picture,), **others)


def test_data_that_cannot_be_measured_is_refused_before_a_model_is_loaded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    good = question("1", tmp_path / "a.png", answers=("x",))

    def refuse(*questions):
        return refuse_unusable(QuestionSet("data", questions), origin="data.json")

    assert refuse(good).questions == (good,)
    with pytest.raises(DataFormatError, match=r"data\.json has no question"):
        refuse()
    with pytest.raises(DataFormatError, match="two questions have the id '1'"):
        refuse(good, good)
    with pytest.raises(DataFormatError, match="1 of 2 questions have no answer, first '2'"):
        refuse(good, question("2", tmp_path / "a.png"))
    with pytest.raises(DataFormatError, match=r"none of the first 1 pictures is there; first .*b\.png\. Name their folder with --images"):
        refuse(question("3", tmp_path / "b.png"))

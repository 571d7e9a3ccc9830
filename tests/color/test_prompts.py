import pytest

from vlm.color.prompts import ABSTRACT, CONCEPTS, OBJECTS, make_prompts, read_concepts, read_concreteness
from vlm.errors import ConfigError, DataFormatError


def test_prompts_are_the_studys():
    assert make_prompts(1).lines[:2] == ["The color of the image represents the word apple.", "The color of the image represents the word banana."]
    assert make_prompts(2, ["apple"]).lines == ["The concept apple is well represented by the color of the image."]
    assert make_prompts(3, ["apple"]).lines == ["The color of the image is associated with the concept apple."]
    assert make_prompts(5).lines[0] == "The color of the image is yellow."
    strengths = make_prompts(4)
    assert len(strengths.lines) == 220
    ends = [
        line.removeprefix("The color of the image is associated with the concept apple with an association strength of ")
        for line in strengths.lines[:11]
    ]
    assert ends == [f"{s} out of 1." for s in ("0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0")]


def test_concepts_stand_in_the_order_of_the_studys_files():
    words = "apple banana carrot celery cherry comfort corn driving eating efficiency eggplant grape leisure mushroom peach reliability safety"
    assert list(CONCEPTS) == [*words.split(), "sleeping", "speed", "working"]


def test_the_twenty_concepts_have_a_concreteness():
    assert len(CONCEPTS) == 20 and set(CONCEPTS) == {*OBJECTS, *ABSTRACT}
    assert min(OBJECTS.values()) > max(ABSTRACT.values())
    assert read_concreteness(None) == OBJECTS | ABSTRACT


def test_concepts_and_concreteness_of_files(tmp_path):
    (tmp_path / "concepts.txt").write_text("\ufefflove\n\n justice \n", encoding="utf-8")
    assert read_concepts(tmp_path / "concepts.txt") == ("love", "justice")
    (tmp_path / "conc.csv").write_text("Word,Bigram,Conc.M\nlove,0,2.07\n", encoding="utf-8")
    assert read_concreteness(tmp_path / "conc.csv") == {"love": 2.07}
    with pytest.raises(DataFormatError, match=r"has the columns love; expected Word and Conc\.M"):
        read_concreteness(tmp_path / "concepts.txt")


def test_unknown_style_and_repeated_concepts_are_refused():
    with pytest.raises(ConfigError, match="1 to 5; got 6"):
        make_prompts(6)
    with pytest.raises(ConfigError, match="'a' is there twice"):
        make_prompts(1, ["a", "b", "a"])

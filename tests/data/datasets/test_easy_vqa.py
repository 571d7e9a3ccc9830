"""Against the published files: counts of the package's README, and of shared/facts/demo_assets.md where captions are concerned."""

import subprocess
import sys
from pathlib import Path

import pytest

from vlm.data.datasets import DATASETS
from vlm.data.datasets.easy_vqa import CAPTION_REQUEST, EasyVQAOptions, Picture, choose_questions, pictures, question_type
from vlm.data.sample import Dropped, Row, Sample
from vlm.errors import DataFormatError
from vlm.messages import count_placeholders

BLUE = Picture(
    Path("train/0.png"),
    (
        ("what is the blue shape?", "circle"),
        ("what color is the shape?", "blue"),
        *((f"is there a thing {i}?", "no") for i in range(10)),
    ),
)


def rows(name: str, split: str) -> list[Row]:
    spec = DATASETS[name]
    return list(spec.open(spec.options, {}).rows(split))


def test_listing_datasets_loads_neither_torch_nor_datasets():
    code = "import sys; from vlm.data.datasets import DATASETS; list(DATASETS); print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_pictures_and_questions_are_the_published_numbers():
    assert [(len(pictures(split)), sum(len(p.questions) for p in pictures(split))) for split in ("train", "test")] == [(4000, 38575), (1000, 9673)]


def test_captions_are_for_pictures_with_color_and_shape_among_the_answers():
    for split, count in (("train", 2435), ("test", 603)):
        found = rows("easy-vqa-captions", split)
        assert sum(isinstance(row, Sample) for row in found) == count
        assert {row.reason for row in found if isinstance(row, Dropped)} == {"color or shape not among the answers"}


def test_caption_names_color_then_shape():
    assert BLUE.caption() == "a blue circle"
    assert Picture(Path("train/1.png"), (("what color is the shape?", "blue"),)).caption() is None


def test_a_conversation_keeps_open_questions_and_has_at_most_so_many_beside_the_caption():
    pairs = choose_questions(BLUE, EasyVQAOptions(max_questions=8))
    assert len(pairs) == 9
    assert {("what is the blue shape?", "circle"), ("what color is the shape?", "blue"), (CAPTION_REQUEST, "a blue circle")} <= set(pairs)
    assert len(set(pairs)) == 9
    assert len(choose_questions(BLUE, EasyVQAOptions())) == 4
    assert len(choose_questions(BLUE, EasyVQAOptions(max_questions=1))) == 2


def test_the_order_is_a_function_of_the_seed():
    first = choose_questions(BLUE, EasyVQAOptions(seed=1))
    assert first == choose_questions(BLUE, EasyVQAOptions(seed=1))
    assert first != choose_questions(BLUE, EasyVQAOptions(seed=2))


def test_every_conversation_shows_its_picture_in_the_first_turn_only():
    for row in rows("easy-vqa", "test"):
        assert isinstance(row, Sample)
        assert row.messages[0].text.startswith("<image>\n")
        assert count_placeholders(row.messages) == len(row.images) == 1


def test_questions_carry_their_type():
    found = rows("easy-vqa-questions", "test")
    assert len(found) == 9673
    assert sum(row.extra["type"] == "yes_no" for row in found if isinstance(row, Sample)) == 7136
    with pytest.raises(DataFormatError, match="no answer 'pink'"):
        question_type("pink")


def test_single_questions_are_those_of_the_conversations_about_the_same_picture():
    together = {row.id: row for row in rows("easy-vqa", "test") if isinstance(row, Sample)}
    alone: dict[str, list[Sample]] = {}
    for row in rows("easy-vqa-single", "test"):
        assert isinstance(row, Sample) and len(row.messages) == 2 and row.messages[0].text.startswith("<image>\n")
        alone.setdefault(row.id.rpartition("/")[0], []).append(row)
    assert alone.keys() == together.keys()
    for name, singles in alone.items():
        assert {single.images for single in singles} == {together[name].images}
        texts = [message.text.removeprefix("<image>\n") for single in singles for message in single.messages]
        assert texts == [message.text.removeprefix("<image>\n") for message in together[name].messages]

"""easy-VQA (Victor Zhou 2019): 64x64 pictures of one colored shape, with questions that have 13 answers, out of a pip package.

Every sentence is the published one. Captions are made of the published answers: a picture has one if both its color and its shape were asked for.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlm.assets import package_file
from vlm.data.datasets.base import DatasetSpec, Source
from vlm.data.sample import Dropped, Row, Sample
from vlm.errors import DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, Message

CAPTION_REQUEST = "Describe the image."
QUESTION_TYPES = {
    "yes_no": frozenset({"yes", "no"}),
    "shape": frozenset({"circle", "rectangle", "triangle"}),
    "color": frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}),
}


@dataclass(frozen=True)
class EasyVQAOptions:
    """Settings of the preparation.

    Attributes:
        seed: Seed of the choice and of the order of the questions of a picture.
        max_questions: Most questions a conversation, the caption request not counted; questions for color and shape are kept before yes/no questions.
    """

    seed: int = 7
    max_questions: int = 3

    def __post_init__(self) -> None:
        if self.max_questions < 1:
            raise ValueError(f"max_questions is {self.max_questions}; a conversation has at least 1 question.")


@dataclass(frozen=True)
class Picture:
    """A picture with its published questions and answers, in published order."""

    name: Path
    questions: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """Split and number."""
        return self.name.with_suffix("").as_posix()

    def caption(self) -> str | None:
        """A text such as "a blue circle", or None if color or shape is not among the answers."""
        found = {question_type(answer): answer for _, answer in self.questions}
        return f"a {found['color']} {found['shape']}" if {"color", "shape"} <= found.keys() else None


def question_type(answer: str) -> str:
    """yes_no, shape or color.

    Raises:
        DataFormatError: If the answer is none of the 13 published ones.
    """
    for name, answers in QUESTION_TYPES.items():
        if answer in answers:
            return name
    raise DataFormatError(f"easy-VQA has no answer {answer!r}.")


def choose_questions(picture: Picture, options: EasyVQAOptions) -> list[tuple[str, str]]:
    """Questions and answers of one picture in random order, the caption request among them where there is a caption."""
    rng = random.Random(f"{options.seed}/{picture.id}")  # one stream a picture: no other picture changes its order
    shuffled = rng.sample(picture.questions, len(picture.questions))
    chosen = sorted(shuffled, key=lambda pair: question_type(pair[1]) == "yes_no")[: options.max_questions]
    caption = picture.caption()
    if caption is not None:
        chosen.append((CAPTION_REQUEST, caption))
    rng.shuffle(chosen)
    return chosen


def pictures(split: str) -> list[Picture]:
    """The pictures of a split, in the order of their numbers.

    Raises:
        MissingPackageError: If the package is not installed.
        DataFormatError: If the package lacks its questions.
    """
    path = _package_folder() / split / "questions.json"
    if not path.is_file():
        raise DataFormatError(f"{path} does not exist. Reinstall the package: pip install --force-reinstall easy-vqa==1.0")
    questions: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in json.loads(path.read_text(encoding="utf-8")):
        questions.setdefault(number, []).append((question, answer))
    return [Picture(Path(split) / f"{number}.png", tuple(questions[number])) for number in sorted(questions)]


def _package_folder() -> Path:
    return package_file("easy-vqa", "easy_vqa/data", extra="demo")


def _conversation(picture: Picture, pairs: Sequence[tuple[str, str]], *, suffix: str = "", **extra: str) -> Sample:
    (first, answer), *others = pairs
    turns = [(f"{IMAGE_PLACEHOLDER}\n{first}", answer), *others]
    messages = tuple(message for question, answer in turns for message in (Message("user", question), Message("assistant", answer)))
    return Sample(picture.id + suffix, (picture.name,), messages, extra)


def _captions(picture: Picture, options: EasyVQAOptions) -> list[Row]:
    caption = picture.caption()
    if caption is None:
        return [Dropped(picture.id, "color or shape not among the answers")]
    return [_conversation(picture, [(CAPTION_REQUEST, caption)])]


def _conversations(picture: Picture, options: EasyVQAOptions) -> list[Row]:
    return [_conversation(picture, choose_questions(picture, options))]


def _chosen(picture: Picture, options: EasyVQAOptions) -> list[Row]:
    pairs = choose_questions(picture, options)
    return [_conversation(picture, [pair], suffix=f"/{i}") for i, pair in enumerate(pairs)]


def _questions(picture: Picture, options: EasyVQAOptions) -> list[Row]:
    return [_conversation(picture, [pair], suffix=f"/{i}", type=question_type(pair[1])) for i, pair in enumerate(picture.questions)]


def _open(rows: Callable[[Picture, EasyVQAOptions], list[Row]], options: EasyVQAOptions, places: Mapping[str, Path]) -> Source:
    folder = _package_folder()
    return Source(
        rows=lambda split: [row for picture in pictures(split) for row in rows(picture, options)],
        locate=lambda name: folder / name.parent / "images" / name.name,
    )


_spec = partial(
    DatasetSpec,
    options=EasyVQAOptions(),
    license="MIT",
    source="https://github.com/vzhou842/easy-VQA, pip package easy-vqa 1.0",
    citation="Victor Zhou. Easy Visual Question Answering. 2019. https://victorzhou.com/blog/easy-vqa/",
    package="easy-vqa",
)

SPECS = {
    "easy-vqa": _spec(
        open=partial(_open, _conversations),
        splits=("train", "test"),
        description="colored shapes: one conversation a picture, up to 3 questions and the caption in random order",
    ),
    "easy-vqa-single": _spec(
        open=partial(_open, _chosen),
        splits=("train", "test"),
        description="colored shapes: the same questions and captions one a row, for --stage.share-images",
    ),
    "easy-vqa-captions": _spec(
        open=partial(_open, _captions),
        splits=("train", "test"),
        description='colored shapes: one caption a picture, such as "a blue circle"',
    ),
    "easy-vqa-questions": _spec(
        open=partial(_open, _questions),
        splits=("train", "test"),
        description="colored shapes: one question a row, with its type (color, shape, yes_no), for evaluation",
    ),
}

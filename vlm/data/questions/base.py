"""Questions with their pictures and reference answers, and what a benchmark of questions is. Opens no picture, imports no torch, knows no model."""

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.data.formats.base import fields_of, list_of, shown, text_of
from vlm.data.formats.json_rows import load_json, read_json_rows
from vlm.data.manifest import MANIFEST, Manifest
from vlm.errors import ConfigError, DataFormatError, UnknownNameError

if TYPE_CHECKING:
    from vlm.data.benchmarks.base import Picture

SHORT_ANSWER = "Answer the question using a single word or phrase."  # LLaVA 1.5's, docs/Evaluation.md
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
COCO_FILE = re.compile(r"COCO_(?:train|val|test)20\d\d_0*(\d+)\.jpg")
LOOKED_AT = 1000  # questions whose pictures are looked for before a model is loaded


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about pictures, or a request for a caption.

    Attributes:
        id: Its name in the benchmark.
        text: As the benchmark states it, without instructions. `<image>` stands for a picture; without any, the pictures come first.
        images: Picture files, in the order of their placeholders.
        answers: References; of multiple choice, the letters of the right options. Empty where they are not published.
        choices: Options of multiple choice.
        candidates: Answers whose log-probabilities can be compared.
        groups: What results are broken down by, such as `{"answer type": "yes/no"}`.
        system: System text.
        numbered: Placeholders are written `<image 2>` and stand for the picture of that number, in the text and in the options.
    """

    id: str
    text: str
    images: tuple[Path, ...]
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    numbered: bool = False

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the options."""
        return tuple(string.ascii_uppercase[: len(self.choices)])


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one split.

    Attributes:
        name: What results are filed under.
        questions: The questions.
        measure: Name of the measure, where the data decides it; empty for the benchmark's.
        not_asked: Ids of further questions that the benchmark's server wants an answer to, which may be empty.
    """

    name: str
    questions: Sequence[Question]
    measure: str = ""
    not_asked: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """Where the files of a benchmark lie.

    Attributes:
        data: Path of a file or folder, or the name of a prepared dataset.
        split: Which split; empty for the usual one.
        images: Folder of the pictures; None to look at the usual places beside the data.
        data_root: Folder of the prepared datasets.
    """

    data: str
    split: str = ""
    images: Path | None = None
    data_root: Path = Path("data")

    @property
    def path(self) -> Path:
        """The data as a path.

        Raises:
            DataFormatError: If there is nothing.
        """
        path = Path(self.data)
        if not path.exists():
            raise DataFormatError(f"There is no file or folder {path}.")
        return path

    def file(self, names: Sequence[str]) -> Path:
        """The data if it is a file, or the first file of these names in the folder.

        Raises:
            DataFormatError: If there is none.
        """
        path = self.path
        if path.is_file():
            return path
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise DataFormatError(f"{path} holds no {' or '.join(names)}. Put the file there, name it itself, or choose another --split.")
        return found

    def picture_folder(self, beside: Path, names: Sequence[str]) -> Path:
        """Folder of the pictures: the one that was named, or the first of these names beside a file, or that file's folder.

        Raises:
            ConfigError: If the named one does not exist.
        """
        if self.images is not None:
            if not self.images.is_dir():
                raise ConfigError(f"There is no folder {self.images} (--images).")
            return self.images
        return next((beside.parent / name for name in names if (beside.parent / name).is_dir()), beside.parent)


@dataclass(frozen=True, kw_only=True)
class QuestionSpec:
    """One benchmark.

    Attributes:
        open: Reads its files.
        prompt: What the model is asked: `{question}`, and `{choices}` for the options, are filled in.
        choice: How an option is written, from `{letter}` and `{choice}`.
        measure: Name of its measure in `vlm.evaluate.metrics`.
        max_new_tokens: Longest answer in tokens.
        description: One line.
        open_prompt: Prompt of questions without options, where a benchmark has both kinds; empty for `prompt`.
        aliases: Other names.
    """

    open: Callable[[Source], QuestionSet]
    prompt: str
    measure: str
    description: str
    max_new_tokens: int = 16
    choice: str = "{letter}. {choice}"
    open_prompt: str = ""
    aliases: tuple[str, ...] = ()


def refuse_unnamed_split(source: Source) -> None:
    """Make sure that a prepared dataset is not measured on what it is trained on, only because nobody said which split.

    Raises:
        ConfigError: If it has several splits and none is named.
    """
    folder = next((folder for folder in (source.data_root / source.data, Path(source.data)) if (folder / MANIFEST).is_file()), None)
    if folder is None or source.split:
        return
    splits = list(Manifest.read(folder).splits)
    if len(splits) > 1:
        raise ConfigError(f"{source.data} has the splits {', '.join(splits)}: say which one to measure, such as --split {splits[-1]}.")


def split_of(source: Source, splits: Sequence[str]) -> str:
    """The split that is asked for, or the first one.

    Raises:
        UnknownNameError: If the benchmark has no such split.
    """
    if source.split and source.split not in splits:
        raise UnknownNameError("split", source.split, splits)
    return source.split or splits[0]


def rows_of(path: Path, key: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows that are objects, each with the place to name in messages: of a list, of JSON lines, or of the list that stands under a key.

    Raises:
        DataFormatError: If the file is not as expected.
    """
    numbered = enumerate(_list_under(path, key), start=1) if key else read_json_rows(path)
    for number, value in numbered:
        if isinstance(value, DataFormatError):
            raise DataFormatError(f"{path}: {value}") from value
        try:
            yield f"{path}, row {number}", fields_of(value)
        except DataFormatError as error:
            raise DataFormatError(f"{path}, row {number}: {error}") from None


def _list_under(path: Path, key: str) -> list[Any]:
    try:
        return list_of(fields_of(load_json(path)), key)
    except DataFormatError as error:
        raise error if str(path) in str(error) else DataFormatError(f"{path}: {error}") from None


def value_of(row: Mapping[str, Any], key: str, where: str) -> Any:
    """A member that must be there.

    Raises:
        DataFormatError: If it is missing.
    """
    if row.get(key) is None:
        raise DataFormatError(f"{where}: {key!r} is missing: found the keys {shown(sorted(map(str, row)))}.")
    return row[key]


def word_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text or number that must be there, as text.

    Raises:
        DataFormatError: If it is missing or something else.
    """
    value = value_of(row, key, where)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    try:
        return text_of(value, repr(key))
    except DataFormatError as error:
        raise DataFormatError(f"{where}: {error}") from None


def annotators_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The members `answers` as texts: a list of texts, or of objects with `answer`; empty if there are none.

    Raises:
        DataFormatError: If they are something else.
    """
    answers = row.get("answers") or []
    if not isinstance(answers, list):
        raise DataFormatError(f"{where}: 'answers' is not a list: found {shown(answers)}.")
    return tuple(word_of(answer, "answer", where) if isinstance(answer, dict) else word_of({"answer": answer}, "answer", where) for answer in answers)


def pictures_of(questions: Sequence[Question]) -> "list[Picture]":
    """The pictures that questions are about, each once; those of COCO by its id, the others by their paths."""
    from vlm.data.benchmarks.base import Picture

    files = dict.fromkeys(image for question in questions for image in question.images if image.name)
    return [Picture(found[1] if (found := COCO_FILE.fullmatch(file.name)) else str(file), file) for file in files]


def refuse_unusable(data: QuestionSet, *, origin: str) -> QuestionSet:
    """Check what can be checked before a model is loaded.

    Raises:
        DataFormatError: If there is no question, two have the same id, only some have references, or none of the first pictures exists.
    """
    questions = data.questions
    if not questions:
        raise DataFormatError(f"{origin} has no question.")
    seen: set[str] = set()
    twice = next((question.id for question in questions if question.id in seen or seen.add(question.id)), None)
    if twice is not None:
        raise DataFormatError(f"{origin}: two questions have the id {twice!r}. Give each its own.")
    without = [question.id for question in questions if not question.answers]
    if without and len(without) < len(questions):
        raise DataFormatError(f"{origin}: {len(without)} of {len(questions)} questions have no answer, first {without[0]!r}. Leave them out.")
    pictures = [picture for question in questions[:LOOKED_AT] for picture in question.images]
    if pictures and not any(picture.is_file() for picture in pictures):
        raise DataFormatError(f"{origin}: none of the first {len(pictures)} pictures is there; first {pictures[0]}. Name their folder with --images.")
    return data

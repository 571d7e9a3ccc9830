"""ScienceQA and MMMU: questions with options, in their official files. Opens no picture, but writes those inside MMMU's Parquet files to the cache.

problems.json, pid_splits.json, images/test/<pid>/image.png                                       ScienceQA (scienceqa.github.io)
{"id", "question": "... <image 1>", "options": "['a', 'b']", "answer": "B", "question_type", "image_1": ...}      MMMU, Parquet or JSON rows
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.assets import cache_dir
from vlm.data.formats.base import fields_of, image_of, shown
from vlm.data.formats.json_rows import load_json
from vlm.data.formats.pictures import unpack_pictures
from vlm.data.formats.sources import numbered_rows
from vlm.data.questions.base import LETTER_ANSWER, SHORT_ANSWER, Question, QuestionSet, QuestionSpec, Source, split_of, value_of, word_of
from vlm.errors import DataFormatError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBERED = re.compile(r"<image (\d+)>")


def open_scienceqa(source: Source) -> QuestionSet:
    """ScienceQA from the folder of its files; a third of its questions has no picture.

    Raises:
        DataFormatError: If a file is missing or not as expected.
    """
    split = split_of(source, ("test", "val", "train", "minitest", "minival", "minitrain"))
    file = source.file(["problems.json"])
    problems, splits = (fields_of(load_json(path)) for path in (file, file.with_name("pid_splits.json")))
    folder = source.picture_folder(file, ["images", f"../images/{split}"])
    questions = []
    for number in splits.get(split, []):
        where = f"{file}, problem {number}"
        row = fields_of(value_of(problems, str(number), where))
        hint, image = (row.get("hint") or "").strip(), row.get("image")
        picture = (_scienceqa_picture(folder, split.removeprefix("mini"), str(number), image),) if image else ()
        context = "image" if image else "text" if hint else "none"
        choices = _texts(value_of(row, "choices", where), where)
        questions.append(
            Question(
                id=str(number),
                text=(f"Context: {hint}\n" if hint else "") + word_of(row, "question", where),  # as lmms-eval asks LLaVA
                images=picture,
                answers=(_letter(int(word_of(row, "answer", where)), choices, where),),
                choices=choices,
                candidates=tuple(LETTERS[: len(choices)]),
                groups={"subject": word_of(row, "subject", where), "context": context},
            )
        )
    return QuestionSet(f"scienceqa-{split}", questions)


def _scienceqa_picture(folder: Path, split: str, number: str, name: str) -> Path:
    return next((path for path in (folder / split / number / name, folder / number / name) if path.is_file()), folder / split / number / name)


def open_mmmu(source: Source) -> QuestionSet:
    """MMMU from a Parquet file, a folder of them, or JSON rows with the same keys whose pictures are paths.

    A question without letters to choose from is open; options may be pictures.

    Raises:
        DataFormatError: If a row is not as expected, or names a picture that it does not have.
    """
    path = source.path
    if source.split:
        raise DataFormatError(f"MMMU's files are split by their names: name the folder or file of the split {source.split!r}.")
    store = cache_dir() / "pictures-mmmu"
    questions = []
    for file, number, value in numbered_rows(path):
        if isinstance(value, DataFormatError):
            raise DataFormatError(f"{file}: {value}") from value
        root = store if file.suffix == ".parquet" else source.picture_folder(file, ["images"])
        questions.append(_mmmu_question(fields_of(unpack_pictures(value, store)), root, f"{file}, row {number}"))
    return QuestionSet(f"mmmu-{path.resolve().stem}", questions)


def _mmmu_question(row: Mapping[str, Any], root: Path, where: str) -> Question:
    number = word_of(row, "id", where)
    choices = _texts(_literal(row.get("options") or []), where)
    pictures = {place: root / image_of(row[key]) for place in range(1, 8) if row.get(key := f"image_{place}")}
    text = word_of(row, "question", where)
    named = {int(place) for place in NUMBERED.findall("\n".join((text, *choices)))}
    if missing := sorted(named - pictures.keys()):
        raise DataFormatError(f"{where}: the question names <image {missing[0]}>, and 'image_{missing[0]}' is empty.")
    answer = _literal(value_of(row, "answer", where))
    answers = _texts(answer if isinstance(answer, list) else [answer], where)
    if choices and not set(answers) <= set(LETTERS[: len(choices)]):
        answers = ()  # the test split has "?"
    return Question(
        id=number,
        text=text,
        images=tuple(pictures.get(place, Path()) for place in range(1, max(pictures, default=0) + 1)),
        answers=() if answers == ("?",) else answers,
        choices=choices,
        candidates=tuple(LETTERS[: len(choices)]),
        groups={"subject": number.split("_", 1)[-1].rsplit("_", 1)[0]} if number.count("_") > 1 else {},
        numbered=True,
    )


def _literal(value: Any) -> Any:
    """MMMU writes lists as Python spells them."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values) or len(values) > len(LETTERS):
        raise DataFormatError(f"{where}: expected a list of at most {len(LETTERS)} texts; found {shown(values)}.")
    return tuple(str(value).strip() for value in values)


def _letter(index: int, choices: tuple[str, ...], where: str) -> str:
    if not 0 <= index < len(choices):
        raise DataFormatError(f"{where}: 'answer' is {index}, and there are {len(choices)} choices, counted from 0.")
    return LETTERS[index]


SPECS = {
    "scienceqa": QuestionSpec(
        open=open_scienceqa,
        prompt=f"{{question}}\n{{choices}}\n{LETTER_ANSWER}",
        measure="scienceqa",
        description="ScienceQA: multiple choice, with and without pictures.",
    ),
    "mmmu": QuestionSpec(
        open=open_mmmu,
        prompt=f"{{question}}\n\n{{choices}}\n\n{LETTER_ANSWER}",  # configs/llava1.5.yaml of MMMU
        open_prompt=f"{{question}}\n\n{SHORT_ANSWER}",
        choice="({letter}) {choice}",
        measure="mmmu",
        description="MMMU: multiple choice and open questions, with several pictures.",
    ),
}

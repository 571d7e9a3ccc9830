"""Questions of the user's own: rows with a question and its answers or options, and the first exchange of any conversation. Opens no picture.

{"image": "a.jpg", "question": "What color?", "answer": "red"}                                   .jsonl or .json, paths relative to the file
{"images": ["a.jpg", "b.jpg"], "question": "<image> or <image>?", "answers": ["left", "the left one"], "type": "compare"}
{"image": "a.jpg", "question": "Which?", "choices": ["cat", "dog"], "answer": "B"}               the letter, the option, or its number from 0
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.data.formats.base import images_of, shown
from vlm.data.formats.json_rows import beginning_of_rows
from vlm.data.formats.sources import JSON_SUFFIXES
from vlm.data.questions.base import LETTER_ANSWER, Question, QuestionSet, QuestionSpec, Source, annotators_of, refuse_unnamed_split, rows_of, word_of
from vlm.data.sample import Sample
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import count_placeholders


def open_questions(source: Source) -> QuestionSet:
    """Rows of a JSON file with `question`, or else any dataset that training reads.

    Raises:
        DataFormatError: If a row has no question or no answer, or only some rows have options.
        ConfigError: If a split or a folder of pictures is named where there are none.
    """
    path = Path(source.data)
    if path.is_file() and path.suffix.lower() in JSON_SUFFIXES and _is_own(path):
        if source.split:
            raise ConfigError(f"{path} is a file of rows, which has no split {source.split!r}. Give a file of its own for each split.")
        folder = source.picture_folder(path, [])
        questions = [_question(row, where, str(number), folder) for number, (where, row) in enumerate(rows_of(path), start=1)]
    else:
        questions = _first_exchanges(source)
    with_choices = [question.id for question in questions if question.choices]
    if with_choices and len(with_choices) < len(questions):
        raise DataFormatError(
            f"{path}: {len(with_choices)} of {len(questions)} rows have 'choices', first {with_choices[0]!r}. Put them into a file of their own."
        )
    return QuestionSet(path.stem if path.exists() else source.data, questions, measure="choices" if with_choices else "")


def _is_own(path: Path) -> bool:
    _, first = next(iter(beginning_of_rows(path)))
    return isinstance(first, dict) and "question" in first and not {"conversations", "messages", "qa"} & first.keys()


def _question(row: Mapping[str, Any], where: str, number: str, folder: Path) -> Question:
    try:
        images = tuple(folder / image for image in images_of(row))
    except DataFormatError as error:
        raise DataFormatError(f"{where}: {error}") from None
    choices = tuple(word_of({"choice": choice}, "choice", where) for choice in row.get("choices") or ())
    answers = annotators_of(row, where) or (word_of(row, "answer", where),)
    question = Question(
        id=str(row.get("id", row.get("question_id", number))),
        text=word_of(row, "question", where),
        images=images,
        answers=answers,
        choices=choices,
        groups={"type": str(row["type"])} if "type" in row else {},
    )
    if not choices:
        return question
    letters = tuple(_letter(answer, question, where) for answer in answers)
    return replace(question, answers=letters, candidates=question.letters)


def _letter(answer: str, question: Question, where: str) -> str:
    """The letter of a letter, an option or a number, in this order."""
    if answer in question.letters:
        return answer
    if answer in question.choices:
        return question.letters[question.choices.index(answer)]
    if answer.isdecimal() and int(answer) < len(question.choices):
        return question.letters[int(answer)]
    raise DataFormatError(f"{where}: the answer {answer!r} is no letter, option or number of {shown(list(question.choices))}.")


def _first_exchanges(source: Source) -> list[Question]:
    from vlm.data.reader import open_dataset

    if source.images is not None:
        raise ConfigError(f"--images is for rows that name pictures; {source.data} has its pictures' places itself.")
    refuse_unnamed_split(source)
    name = f"{source.data}@{source.split}" if source.split else source.data
    seen: Counter[str] = Counter()
    return [_of_sample(sample, seen) for sample in open_dataset(name, data_root=source.data_root)]


def _of_sample(sample: Sample, seen: Counter[str]) -> Question:
    """The first exchange. Published mixes have ids that come twice: the second one gets a number."""
    seen[sample.id] += 1
    roles = [message.role for message in sample.messages]
    start = int(roles[0] == "system")
    if roles[start : start + 2] != ["user", "assistant"]:
        raise DataFormatError(f"Sample {sample.id!r} does not begin with a question and its answer: its turns are by {', '.join(roles)}.")
    asked, answer = sample.messages[start : start + 2]
    return Question(
        id=sample.id if seen[sample.id] == 1 else f"{sample.id}#{seen[sample.id]}",
        text=asked.text,
        images=sample.images[: count_placeholders([asked])],
        answers=(answer.text,),
        groups={"type": sample.extra["type"]} if "type" in sample.extra else {},
        system=sample.messages[0].text if start else "",
    )


SPECS = {
    "questions": QuestionSpec(
        open=open_questions,
        prompt=f"{{question}}\n{{choices}}\n{LETTER_ANSWER}",
        open_prompt="{question}",
        measure="short-answers",
        description="Your own questions: rows with answers or options, or any dataset that training reads.",
    )
}

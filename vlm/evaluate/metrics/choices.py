"""Multiple choice: which letter an answer names, as LLaVA's script for ScienceQA and MMMU's script read it; MMMU's open questions. Knows no model.

Sources: `eval_science_qa.py` of haotian-liu/LLaVA, `eval_utils.py` of MMMU-Benchmark/MMMU. Neither letter nor option in an answer: it is wrong and counted
as unread, where MMMU's script draws a letter.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vlm.data.questions.base import Question
from vlm.evaluate.metrics.base import ACCURACY, Measure, Measured

UNREAD = ""
MARKS = ",.!?;:'"
SCIENCEQA_LETTERS = "ABCDE"  # which LLaVA's script reads first, however many options a question has
FEW_WORDS = 5  # MMMU looks for the text of options in longer answers only
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def scienceqa_letter(answer: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """LLaVA's rule: the letter alone, a letter with ". " behind it, or else "The answer is B" with one more character, once; a letter without option is none."""
    found = re.findall(r"The answer is ([A-Z]).", answer)  # any character behind it, as there
    if answer[:1] in {*SCIENCEQA_LETTERS, *letters} and answer[1:3] in ("", ". "):
        found = [answer[0]]
    return found[0] if len(found) == 1 and found[0] in letters else UNREAD


def mmmu_letter(answer: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """MMMU's rule: the last letter in parentheses; else the last one between spaces; else, in an answer of more than 5 words, the last option."""
    for mark in MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form in ("({})", " {} "):
        places = {letter: answer.rfind(form.format(letter)) for letter in letters}
        if max(places.values()) >= 0:
            return max(places, key=places.__getitem__)
    places = {letter: answer.lower().rfind(choice.lower()) for letter, choice in zip(letters, choices, strict=True)}
    return max(places, key=places.__getitem__) if len(answer.split()) > FEW_WORDS and max(places.values()) >= 0 else UNREAD


def any_letter(answer: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """For data of no benchmark: the text of an option, or else LLaVA's rule, or else MMMU's; `B)`, `b` and `B: a cat` count as B."""
    bare = answer.strip().rstrip(".").lower()
    named = [letter for letter, choice in zip(letters, choices, strict=True) if choice.strip().rstrip(".").lower() == bare]
    if len(named) == 1:
        return named[0]
    beginning = re.match(r"\(?([A-Za-z])(?:$|[).:])", answer.strip())
    if beginning and beginning[1].upper() in letters:
        return beginning[1].upper()
    return scienceqa_letter(answer, choices, letters) or mmmu_letter(answer, choices, letters)


def open_answer_is_right(answer: str, references: Sequence[str]) -> bool:
    """MMMU's rule for questions without options: a reference stands in a part of the answer that says a result, or is a number of it."""
    wanted = [value for reference in references for value in _values(reference)]
    parts = _results(answer)
    said = [value for part in [*parts, *(number for part in parts for number in _numbers(part))] for value in _values(part)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in said)


def _values(text: str) -> list[str | float]:
    """A number to 2 decimals, or lower-case text; a single letter with a space beside it, so that it is not found in words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _numbers(text: str) -> list[str]:
    return [found for pattern in NUMBERS for found in re.findall(pattern, text)]


def _results(answer: str) -> list[str]:
    """Of each line what follows the indicator of a result and is shortest; the whole answer if there is none."""
    answer = answer.strip().strip(".").lower()
    lines, results = answer.split("\n"), []
    for number, line in enumerate(lines, start=1):
        indicators = (*INDICATORS, "=") if number == len(lines) else INDICATORS
        shortest = ""
        for tail in (line.split(indicator)[-1].strip() for indicator in indicators if indicator in line):
            if not shortest or len(tail) < len(shortest):  # an empty tail counts as shorter, and then as none
                shortest = tail
        if shortest and shortest not in MARKS:
            results.append(shortest)
    return results or [answer]


def _submitted(question: Question, answer: str) -> dict[str, object]:
    """A row of MMMU's file: the letter, or the answer to an open question."""
    return {question.id: mmmu_letter(answer, question.choices, question.letters) if question.choices else answer}


def _by(read_letter: Callable[[str, Sequence[str], Sequence[str]], str]) -> Callable[[Sequence[Question], Sequence[str]], Measured]:
    def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measured:
        read = [read_letter(answer, q.choices, q.letters) if q.choices else answer for q, answer in zip(questions, answers, strict=True)]
        right = [
            letter in q.answers if q.choices else open_answer_is_right(answer, q.answers)
            for q, answer, letter in zip(questions, answers, read, strict=True)
        ]
        scores = torch.tensor(right, dtype=torch.float64)
        unread = torch.tensor([bool(q.choices) and letter == UNREAD for q, letter in zip(questions, read, strict=True)], dtype=torch.float64)

        def metrics(chosen: Int[Tensor, " n"]) -> Mapping[str, float]:
            return {ACCURACY: scores[chosen].mean().item(), "unread": unread[chosen].mean().item()}

        chance = sum(len(q.answers) / len(q.choices) for q in questions if q.choices) / len(questions)
        return Measured(scores.tolist(), metrics, {ACCURACY: chance, "unread": 0.0}, read)

    return measure


SPECS = {
    "scienceqa": Measure(
        measure=_by(scienceqa_letter),
        note="Unread: answers that are neither a letter, nor begin with one and a full stop, nor say 'The answer is B.'; they count as wrong.",
    ),
    "mmmu": Measure(
        measure=_by(mmmu_letter),
        submission=_submitted,
        one_object=True,
        note="Letters and open answers are read by MMMU's rules. Unread answers count as wrong; MMMU's own script draws a letter for them.",
    ),
    "choices": Measure(measure=_by(any_letter), note="Unread: answers in which no option is found; they count as wrong."),
}

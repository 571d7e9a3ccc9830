"""Accuracy of short answers as VQAv2, TextVQA, VizWiz and GQA count it, normalization and its oddities included. Knows no model.

Sources: `vqaEval.py` of GT-Vision-Lab/VQA (VQAv2) and of VizWiz, `m4c_evaluator.py` of haotian-liu/LLaVA, which is MMF's (TextVQA, and how answers are
normalized before they are sent to a server), `eval.py` of GQA.
"""

import re
from collections.abc import Callable, Sequence

from vlm.data.questions.base import Question
from vlm.evaluate.metrics.base import Measure, Measured, mean_score

PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the scripts give re.UNICODE, which is 32, where re.sub takes the number of replacements
ARTICLES = {"a", "an", "the"}
WORDS_OF_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS: dict[str, str] = {"none": "0"} | {word: str(digit) for digit, word in enumerate(WORDS_OF_DIGITS)}
CONTRACTIONS_IN_FULL = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd
    it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've"""
WITH_ONE_APOSTROPHE_LESS = {
    full[:place] + full[place + 1 :]: full for full in CONTRACTIONS_IN_FULL.split() for place, character in enumerate(full) if character == "'"
}
CONTRACTIONS = WITH_ONE_APOSTROPHE_LESS | {"somebody'd": "somebodyd"}  # so the scripts have it
ENOUGH = 3  # annotators who say the same, for a full point


def one_line(answer: str) -> str:
    """An answer without line breaks, tabs and outer white space."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str) -> str:
    """Marks between letters become spaces; beside a space, or if the text has a number with a comma, they go."""
    has_number = COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        out = out.replace(mark, "" if has_number or f"{mark} " in text or f" {mark}" in text else " ")
    return PERIOD.sub("", out, count=MOST_PERIODS)


def process_digit_article(text: str) -> str:
    """Lower case, digits for the words none to ten, no articles, apostrophes in contractions."""
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_normalized(text: str) -> str:
    """VQA's two steps."""
    return process_digit_article(process_punctuation(text))


def evalai_normalized(answer: str) -> str:
    """MMF's EvalAI processor: VQA's two steps behind lower case, without commas and question marks, a space before 's."""
    return vqa_normalized(one_line(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")))


def leave_one_out(said: str, annotators: Sequence[str]) -> float:
    """Mean over the annotators of min(1, others who say the same / 3)."""
    same = [annotator == said for annotator in annotators]
    return sum(min(1.0, (sum(same) - own) / ENOUGH) for own in same) / len(same)


def vqav2_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The answer as it would be submitted; if all annotators say the same, it is compared as it is, without VQA's own normalization."""
    said, wanted = one_line(evalai_normalized(answer)), [one_line(annotator) for annotator in annotators]
    if len(set(wanted)) > 1:
        said, wanted = vqa_normalized(said), [vqa_normalized(annotator) for annotator in wanted]
    return leave_one_out(said, wanted)


def vizwiz_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The answer as it would be submitted, normalized; the annotators' answers as they are in the file."""
    return leave_one_out(vqa_normalized(one_line(evalai_normalized(answer))), annotators)


def textvqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Answer and annotators, all through MMF's processor."""
    return leave_one_out(evalai_normalized(answer), [evalai_normalized(annotator) for annotator in annotators])


def gqa_normalized(answer: str) -> str:
    """As LLaVA hands answers to GQA's script: lower case, no final full stop."""
    return answer.rstrip(".").lower()


def gqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Whether the answer is a reference, letter by letter."""
    return float(gqa_normalized(answer) in references)


def _by(accuracy: Callable[[str, Sequence[str]], float], read: Callable[[str], str]) -> Callable[[Sequence[Question], Sequence[str]], Measured]:
    def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measured:
        scores = [accuracy(answer, question.answers) for question, answer in zip(questions, answers, strict=True)]
        return mean_score(scores, [read(answer) for answer in answers])

    return measure


def _number(id: str) -> int | str:
    """A question's number as the servers want it."""
    return int(id) if id.isdecimal() else id


SPECS = {
    "vqav2": Measure(
        measure=_by(vqav2_accuracy, evalai_normalized),
        submission=lambda question, answer: {"question_id": _number(question.id), "answer": evalai_normalized(answer)},
        note="Accuracy of the VQA challenge: the mean over 10 annotators of min(1, others who gave this answer / 3).",
    ),
    "textvqa": Measure(
        measure=_by(textvqa_accuracy, evalai_normalized),
        submission=lambda question, answer: {"question_id": _number(question.id), "answer": evalai_normalized(answer)},
        note="Accuracy of the VQA challenge with MMF's normalization of all answers. LLaVA's published numbers have OCR tokens in the prompt: textvqa-ocr.",
    ),
    "vizwiz": Measure(
        measure=_by(vizwiz_accuracy, lambda answer: vqa_normalized(evalai_normalized(answer))),
        submission=lambda question, answer: {"image": question.images[0].name, "answer": evalai_normalized(answer)},
        note="VizWiz's accuracy: the mean over 10 annotators of min(1, others who gave this answer / 3); only the model's answer is normalized.",
    ),
    "gqa": Measure(
        measure=_by(gqa_accuracy, gqa_normalized),
        submission=lambda question, answer: {"questionId": question.id, "prediction": gqa_normalized(answer)},
        note="Share of answers that are the reference, apart from letter case and a final full stop.",
    ),
}

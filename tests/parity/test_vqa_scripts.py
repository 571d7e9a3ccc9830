"""Accuracy over annotators against the official rules, restated character by character and annotator by annotator, on thousands of odd answers.

`vqaEval.py` of GT-Vision-Lab/VQA (VQAv2), VizWiz's `vqaEval.py`, MMF's evaluator of TextVQA as LLaVA's `m4c_evaluator.py` has it. The dictionary of
contractions is the package's: its hash is compared with the official one in tests/evaluate/metrics.
"""

import random

import pytest

from vlm.evaluate.metrics.vqa_accuracy import CONTRACTIONS, textvqa_accuracy, vizwiz_accuracy, vqav2_accuracy

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = dict(none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9", ten="10")
PIECES = [
    "a",
    "the",
    "An",
    "dog",
    "Dog's",
    "two",
    "none",
    "10",
    "1,000",
    "3.5",
    "isnt",
    "t-shirt",
    "u.s.",
    "yes!",
    "what?",
    "'s",
    ",",
    " ",
    "\n",
    "\t",
    ".",
    "é",
]


def without_marks(text):
    has_thousands = any(text[i].isdigit() and text[i + 1] == "," and text[i + 2].isdigit() for i in range(len(text) - 2))
    beside_space = {mark for mark in MARKS if mark + " " in text or " " + mark in text}
    out = "".join(("" if has_thousands or letter in beside_space else " ") if letter in MARKS else letter for letter in text)
    kept, removed = [], 0
    for i, letter in enumerate(out):
        if letter == "." and removed < 32 and not out[i + 1 : i + 2].isdigit():
            removed += 1
        else:
            kept.append(letter)
    return "".join(kept)


def normalized(text):
    words = []
    for word in without_marks(text).lower().split():
        number = NUMBERS.get(word, word)
        if number not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(number, number))
    return " ".join(words)


def on_one_line(text):
    return "".join(" " if letter in "\n\t" else letter for letter in text).strip()


def submitted(text):
    """What LLaVA sends to the servers, and MMF compares."""
    return normalized(on_one_line(text.lower().replace(",", "").replace("?", "").replace("'s", " 's")))


def agreement(said, annotators):
    scores = []
    for i in range(len(annotators)):
        others = annotators[:i] + annotators[i + 1 :]
        scores.append(min(1, others.count(said) / 3))
    return sum(scores) / len(scores)


def vqav2_script(answer, annotators):
    said, wanted = on_one_line(submitted(answer)), [on_one_line(annotator) for annotator in annotators]
    if any(annotator != wanted[0] for annotator in wanted):
        said, wanted = normalized(said), [normalized(annotator) for annotator in wanted]
    return agreement(said, wanted)


SCRIPTS = {
    vqav2_accuracy: vqav2_script,
    vizwiz_accuracy: lambda answer, annotators: agreement(normalized(on_one_line(submitted(answer))), annotators),
    textvqa_accuracy: lambda answer, annotators: agreement(submitted(answer), [submitted(annotator) for annotator in annotators]),
}


@pytest.mark.parametrize("ours", SCRIPTS, ids=lambda function: function.__name__)
def test_odd_answers_have_the_accuracy_of_the_official_rules(ours):
    draw, seen = random.Random(0), set()
    for _ in range(3000):
        pool = ["".join(draw.choices(PIECES, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 3))]
        pool += [submitted(draw.choice(pool))]  # so that some answers agree with some annotators
        annotators, answer = draw.choices(pool[draw.randint(0, len(pool) - 1) :], k=10), draw.choice(pool)
        wanted = SCRIPTS[ours](answer, annotators)
        assert ours(answer, annotators) == pytest.approx(wanted), (answer, annotators)
        seen.add(round(wanted, 2))
    assert {0, 0.3, 0.6, 0.9, 1} <= seen

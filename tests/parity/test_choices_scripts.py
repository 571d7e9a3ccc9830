"""Multiple choice and open answers by the official rules, restated step by step from the scripts, on thousands of odd answers.

ScienceQA: `eval_science_qa.py` of haotian-liu/LLaVA. MMMU: `eval_utils.py` of MMMU-Benchmark/MMMU (`parse_multi_choice_response`, `parse_open_response`,
`eval_open`). Where MMMU's script draws a letter the restatement says None; there ours is unread and wrong, on purpose.
"""

import random
import re
import string

from vlm.evaluate.metrics.choices import mmmu_letter, open_answer_is_right, scienceqa_letter

OPTIONS = {"A": "a cat", "B": "the dog", "C": "Paris", "D": "3.5", "E": "cat"}
WORDS = [
    *"ABCDEFb",
    "(A)",
    "(B)",
    "(C).",
    "B.",
    "A,",
    "a cat",
    "The dog",
    "paris",
    "3.5",
    "so",
    "it",
    "is",
    "The answer is",
    "The answer is A.",
    "I think",
]
GLUE = ["", " ", " ", " ", ". ", ", ", "\n", ": ", "."]
SAID = ["12", "12.0", "1,200", "1200", "-3", "3.14159", ".5", "1e3", "5%", "$7", "x", "a", "yes", "a tree", "The result ", "could be "]
SAID += ["so ", "is ", "= ", "thus ", "answer ", "so .", "is :", "3.1449", "3.14", "-1,200.5", "nan"]
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # with commas
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # scientific
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def odd(draw, words):
    return "".join(draw.choice(words) + draw.choice(GLUE) for _ in range(draw.randint(0, 7)))


def scienceqa_script(answer, num_choices):
    """A letter among all five that the script knows; one beyond the question's own options counts as none."""
    said = re.findall(r"The answer is ([A-Z]).", answer)
    if answer[:1] in OPTIONS and (answer[1:3] == ". " or answer == answer[:1]):
        said = [answer[0]]
    return said[0] if len(said) == 1 and said[0] in [*OPTIONS][:num_choices] else ""


def mmmu_script(answer, options):
    """The candidates of the first kind that has any; of several, the one that is found last."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    kinds = [(answer, {letter: f"({letter})" for letter in options}), (answer, {letter: f" {letter} " for letter in options})]
    if len(answer.split()) > 5:
        kinds.append((answer.lower(), {letter: option.lower() for letter, option in options.items()}))
    for text, pieces in kinds:
        found = [(len(text.rpartition(piece)[0]), -place, letter) for place, (letter, piece) in enumerate(pieces.items()) if piece in text]
        if found:
            return max(found)[2]
    return None


def compared(text):
    """Numbers rounded, texts in lower case, single letters with a space on either side."""
    text = text.strip()
    try:
        return {round(float(text.replace(",", "")), 2)}
    except ValueError:
        return {f" {text.lower()}", f"{text.lower()} "} if len(text) == 1 else {text.lower()}


def stated(answer):
    """The tails that follow an indicator, the shortest of each line; an equals sign indicates in the last line alone."""
    answer = answer.strip().strip(".").lower()
    lines, parts = answer.split("\n"), []  # the script parts at ". " before capitals as well, of which lower case has none
    for i, line in enumerate(lines):
        words = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", *(["="] if i == len(lines) - 1 else [])]
        best = None
        for tail in [line[line.rindex(word) + len(word) :].strip() for word in words if word in line]:
            best = tail if not best or len(tail) < len(best) else best
        parts += [best] if best and best not in [*":,.!?;'"] else []
    return parts or [answer]


def mmmu_open_script(answer, references):
    parts = stated(answer)
    said = {value for part in [*parts, *(n for part in parts for form in NUMBERS for n in re.findall(form, part))] for value in compared(part)}
    wanted = {value for reference in references for value in compared(reference)}
    return any(value in wanted or any(isinstance(value, str) and isinstance(text, str) and text in value for text in wanted) for value in said)


def test_letters_of_odd_answers_are_those_of_scienceqas_script():
    draw, seen = random.Random(0), set()
    for _ in range(4000):
        answer, num = odd(draw, WORDS) if draw.random() < 0.8 else draw.choice("ABCDEF"), draw.randint(2, 5)
        wanted = scienceqa_script(answer, num)
        assert scienceqa_letter(answer, [*OPTIONS.values()][:num], [*OPTIONS][:num]) == wanted, (answer, num)
        seen.add(wanted)
    assert seen == {"", *OPTIONS}


def test_letters_of_odd_answers_are_those_of_mmmus_script_and_none_where_it_draws_one():
    draw, seen = random.Random(1), set()
    for _ in range(4000):
        answer, num = odd(draw, WORDS), draw.randint(2, 5)
        options = dict([*OPTIONS.items()][:num])
        wanted = mmmu_script(answer, options)
        assert mmmu_letter(answer, [*options.values()], [*options]) == (wanted or ""), (answer, num)
        seen.add(wanted)
    assert seen == {None, *OPTIONS}


def test_odd_open_answers_are_right_where_mmmus_script_says_so():
    draw, right = random.Random(2), 0
    references = [word for word in (said.strip(" =") for said in SAID) if word.strip(string.punctuation)]
    for _ in range(4000):
        answer, own = odd(draw, SAID), draw.sample(references, draw.randint(1, 2))
        wanted = mmmu_open_script(answer, own)
        assert open_answer_is_right(answer, own) == wanted, (answer, own)
        right += wanted
    assert 400 < right < 3600

"""GQA and POPE from files to numbers, against what their official scripts do with the same files, restated here from their published rules.

GQA: `eval.py` (gqadataset.org) on the predictions file that is submitted. POPE: `evaluate.py` of RUCAIBox/POPE, as LLaVA calls it for each category.
"""

import json
import random
from itertools import chain
from pathlib import Path

import pytest
from color_answerer import COLORS, ColorAnswerer, contender
from PIL import Image

from vlm.commands.evaluate_answers import main

SAID = [
    "yes",
    "Yes.",
    "no",
    "No",
    "NO",
    "No, there is not.",
    "There is not.",
    "not. yes",
    "yes. no",
    "Nothing",
    "a no",
    "red",
    "Red.",
    "red..",
    "",
    "left,",
]


class Talker(ColorAnswerer):
    """Says one thing after another."""

    def __init__(self):
        super().__init__()
        self.draw = random.Random(1)

    def answer(self, prompts, max_new_tokens):
        return [self.draw.choice(SAID) for _ in prompts]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for color, rgb in COLORS.items():
        Image.new("RGB", (8, 8), rgb).save(tmp_path / "images" / f"{color}.jpg")
    return tmp_path


def evaluated(benchmark, data):
    """Metrics, and those of each group."""
    main(benchmark, [data, "--model", "m", "--out", "out", "--resamples", "2"], find=lambda name, *others: contender(name, Talker()))
    result = json.loads(Path("out/details.json").read_text(encoding="utf-8"))["models"]["m"]
    return {name: score["value"] for name, score in result["metrics"].items()}, result["groups"]


def gqa_script(questions, predictions):
    """Accuracy in percent of everything, of each kind of answer and of each type: equal texts, over the balanced questions."""
    said = {row["questionId"]: row["prediction"] for row in predictions}
    hits = {}
    for number, question in questions.items():
        if question["isBalanced"]:
            structural, semantic = question["types"]["structural"], question["types"]["semantic"]
            for key in ("all", "open" if structural == "query" else "binary", structural, semantic):
                hits.setdefault(key, []).append(100 if said[number] == question["answer"] else 0)
    return {key: sum(own) / len(own) for key, own in hits.items()}


def test_gqa_is_what_its_script_makes_of_the_submitted_file(folder):
    draw = random.Random(0)
    questions = {
        f"20{i}": {
            "imageId": draw.choice([*COLORS]),
            "question": f"What is {i}?",
            "answer": draw.choice(["yes", "no", "red", "left"]),
            "isBalanced": i % 5 != 0,
            "types": {"structural": draw.choice(["query", "verify", "choose"]), "semantic": draw.choice(["rel", "obj", "attr"])},
        }
        for i in range(300)
    }
    (folder / "testdev_all_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    metrics, groups = evaluated("gqa", ".")
    wanted = gqa_script(questions, json.loads((folder / "out" / "m" / "submission.json").read_text(encoding="utf-8")))
    assert 100 * metrics["accuracy"] == pytest.approx(wanted.pop("all")) and wanted
    measured = {group: values["accuracy"] for own in groups.values() for group, values in own.items()}
    assert {group: 100 * value for group, value in measured.items()} == pytest.approx(wanted)


def pope_script(texts, labels):
    """The script's five numbers: a reply is cut at its first full stop, loses its commas, and is a no if one of three words stands between spaces."""
    no = [any(word in reply.partition(".")[0].replace(",", "").split(" ") for word in ("No", "not", "no")) for reply in texts]
    pairs = [(not negative, label != "no") for negative, label in zip(no, labels, strict=True)]
    true_yes, false_yes, true_no, false_no = (pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True)))
    precision, recall = true_yes / (true_yes + false_yes), true_yes / (true_yes + false_no)
    return {
        "accuracy": (true_yes + true_no) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_rate": 1 - sum(no) / len(no),
    }


def test_pope_is_what_its_script_makes_of_each_category(folder):
    draw = random.Random(0)
    labels = {category: [draw.choice(["yes", "no"]) for _ in range(150)] for category in ("random", "popular", "adversarial")}
    for category, own in labels.items():
        rows = [
            {"question_id": i, "image": f"{draw.choice([*COLORS])}.jpg", "text": "Is there a dog in the image?", "label": label}
            for i, label in enumerate(own, start=1)
        ]
        (folder / f"coco_pope_{category}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    metrics, groups = evaluated("pope", ".")
    predictions = [json.loads(line) for line in (folder / "out" / "m" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {category: [row["answer"] for row in predictions if row["id"].startswith(f"{category}/")] for category in labels}
    for category, own in groups["category"].items():
        assert {name: own[name] for name in metrics} == pytest.approx(pope_script(texts[category], labels[category]))
    assert metrics == pytest.approx(pope_script([*chain(*texts.values())], [*chain(*labels.values())]))

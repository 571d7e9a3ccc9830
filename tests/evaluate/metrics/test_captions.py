"""CIDEr-D, BLEU-4 and ROUGE-L: stored values of pycocoevalcap, the package itself where it is installed, and cases by hand."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from vlm.data.questions.base import Question
from vlm.evaluate.metrics import MEASURES
from vlm.evaluate.metrics.captions import bleu4, bleu_counts, cider_d, common_length, rouge_l

GOLDEN = json.loads(Path(__file__).with_name("caption_golden.json").read_text(encoding="utf-8"))


def corpus_bleu(captions, references):
    return bleu4(torch.tensor([bleu_counts(*pair) for pair in zip(captions, references, strict=True)]))


def test_a_corpus_has_the_scores_that_pycocoevalcap_gave_it():
    questions = [Question(id=str(i), text="", images=(), answers=tuple(row["references"])) for i, row in enumerate(GOLDEN["rows"])]
    measured = MEASURES["captions"].measure(questions, [row["caption"] for row in GOLDEN["rows"]])
    wanted = {name: GOLDEN[name] for name in ("cider", "bleu4", "rouge_l")}
    assert measured.metrics(torch.arange(len(questions))) == pytest.approx(wanted, abs=1e-9)
    assert measured.scores == pytest.approx(GOLDEN["cider_of_each"], abs=1e-9)
    assert [measured.metrics(torch.tensor([i]))["rouge_l"] for i in range(len(questions))] == pytest.approx(GOLDEN["rouge_l_of_each"], abs=1e-9)


def test_random_corpora_have_pycocoevalcaps_scores():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pip install pycocoevalcap, to compare with it")
    cider, rouge = pytest.importorskip("pycocoevalcap.cider.cider"), pytest.importorskip("pycocoevalcap.rouge.rouge")
    draw = random.Random(0)
    words = ["a", "the", "man", "dog", "on", "grass", "red", "ball", "with", "is", "sitting", "of"]
    for _ in range(10):
        sentences = [[" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(draw.randint(2, 6))] for _ in range(draw.randint(1, 12))]
        said, wanted = {i: own[:1] for i, own in enumerate(sentences)}, {i: own[1:] for i, own in enumerate(sentences)}
        captions, references = [own[0].split() for own in said.values()], [[text.split() for text in own] for own in wanted.values()]
        assert corpus_bleu(captions, references) == pytest.approx(bleu.Bleu(4).compute_score(wanted, said, verbose=0)[0][3], abs=1e-9)
        assert cider_d(captions, references) == pytest.approx(list(cider.Cider().compute_score(wanted, said)[1]), abs=1e-9)
        assert [rouge_l(*pair) for pair in zip(captions, references, strict=True)] == pytest.approx(
            list(rouge.Rouge().compute_score(wanted, said)[1]), abs=1e-9
        )


def test_bleu_by_hand():
    caption, reference = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "sat", "on", "a", "mat"]
    precisions = (5 / 6, 3 / 5, 2 / 4, 1 / 3)  # "the" counts once: the reference has one
    assert corpus_bleu([caption], [[reference]]) == pytest.approx(math.prod(precisions) ** 0.25)
    assert corpus_bleu([caption[:5]], [[["the", "cat", "sat", "on", "the", "mat"]]]) == pytest.approx(math.exp(1 - 6 / 5))  # all matches; too short
    assert corpus_bleu([caption], [[reference, caption]]) == pytest.approx(1)


def test_rouge_by_hand():
    assert common_length(["a", "b", "c", "d"], ["b", "x", "d", "a"]) == 2
    precision, recall = 2 / 2, 2 / 4
    wanted = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["dog", "runs"], [["the", "dog", "runs", "fast"]]) == pytest.approx(wanted)
    assert rouge_l(["dog"], [["cat"]]) == 0
    assert rouge_l([], [["cat"]]) == 0


def test_cider_by_hand():
    """Two pictures: words of one weigh log 2, words of both nothing; an equal caption has cosine 1 for each n that has a weight."""
    references = [["a", "cat"]], [["a", "dog"]]
    exact, other = cider_d([["a", "cat"], ["a", "cat"]], references)
    assert exact == pytest.approx(10 * 2 / 4)  # single words and pairs; there are no longer n-grams
    assert other == 0
    repeated, _ = cider_d([["a", "cat", "cat", "cat"], ["a", "dog"]], references)
    one, pair = 1 / 3, 1 / math.sqrt(1 + 4)  # clipped at one "cat"; pairs "a cat" once, "cat cat" twice
    assert repeated == pytest.approx(10 * (one + pair) / 4 * math.exp(-(2**2) / 72))
    assert cider_d([["a", "cat"]], [[["a", "cat"]]]) == [0]  # a single picture: nothing is rare

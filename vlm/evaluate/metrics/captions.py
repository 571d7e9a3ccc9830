"""BLEU-4, CIDEr-D and ROUGE-L of captions, as COCO's caption evaluation computes them (pycocoevalcap). Knows no model.

Sources: Papineni et al. 2002 (BLEU), Vedantam et al. 2015, arXiv:1411.5726, section 3 and appendix (CIDEr-D), Lin 2004 (ROUGE). Where a paper leaves
something open, pycocoevalcap decides: the reference length that is closest, beta 1.2, lengths counted in pairs of words.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.data.questions.base import Question
from vlm.evaluate.metrics.base import Measure, Measured
from vlm.evaluate.metrics.ptb_tokens import ptb_words

LONGEST = 4  # words of an n-gram
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's, against divisions by zero
SIGMA = 6.0  # CIDEr-D's tolerance of lengths
SCALE = 10.0  # CIDEr's
BETA = 1.2  # ROUGE-L's weight of recall

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]


def grams(words: Words) -> Grams:
    """N-grams of up to 4 words, counted."""
    return Counter(tuple(words[start : start + n]) for n in range(1, LONGEST + 1) for start in range(len(words) - n + 1))


def bleu_counts(caption: Words, references: Sequence[Words]) -> list[int]:
    """What BLEU is made of: matches and n-grams for each n, the caption's length, and the length of the reference that is closest to it."""
    most: Grams = Counter()
    for reference in references:
        most |= grams(reference)
    length, matches = len(caption), [0] * LONGEST
    for gram, count in grams(caption).items():
        matches[len(gram) - 1] += min(count, most[gram])
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [*matches, *(max(0, length - n) for n in range(LONGEST)), length, closest]


def bleu4(counts: Int[Tensor, "n 10"]) -> float:
    """BLEU-4 of a corpus from the counts of its captions."""
    *parts, length, wanted = counts.sum(0).tolist()
    precisions = [(match + TINY) / (total + SMALL) for match, total in zip(parts[:LONGEST], parts[LONGEST:], strict=True)]
    ratio = (length + TINY) / (wanted + SMALL)
    return math.prod(precisions) ** (1 / LONGEST) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


@dataclass(frozen=True)
class Weighted:
    """N-grams of a caption, weighted by how rare they are.

    Attributes:
        weights: For each n, the weight of each n-gram.
        norms: For each n, the length of that vector.
        pairs: Pairs of words, which CIDEr-D compares lengths by.
    """

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    pairs: int


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption; how rare an n-gram is comes from the references of all pictures. 0 for a single picture, by definition.

    Args:
        captions: Words of one caption a picture.
        references: Words of the references of each picture.
    """
    counted = [[grams(reference) for reference in own] for own in references]
    pictures_with = Counter(gram for own in counted for gram in set().union(*own))
    rarest = math.log(len(references))

    def weighted(counts: Grams) -> Weighted:
        weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (rarest - math.log(max(1, pictures_with[gram])))
        norms = tuple(math.sqrt(sum(weight**2 for weight in own.values())) for own in weights)
        return Weighted(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))

    scores = []
    for caption, own in zip(captions, counted, strict=True):
        said = weighted(grams(caption))
        scores.append(SCALE * sum(_similarity(said, weighted(reference)) for reference in own) / len(own))
    return scores


def _similarity(said: Weighted, wanted: Weighted) -> float:
    """Mean over n of the cosine, no n-gram counted oftener than the reference has it; less for another length."""
    total = 0.0
    for own, theirs, norm, other in zip(said.weights, wanted.weights, said.norms, wanted.norms, strict=True):
        common = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in own.items() if gram in theirs)
        total += common / (norm * other) if norm and other else common
    return total / LONGEST * math.exp(-((said.pairs - wanted.pairs) ** 2) / (2 * SIGMA**2))


def rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """F of the longest common subsequence, from the best precision and the best recall among the references."""
    lengths = [(common_length(caption, reference), max(1, len(reference))) for reference in references]
    precision = max(common for common, _ in lengths) / max(1, len(caption))
    recall = max(common / length for common, length in lengths)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0


def common_length(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def _tokenized(texts: Sequence[Sequence[str]]) -> Iterator[list[list[str]]]:
    return ([ptb_words(text) for text in own] for own in texts)


def measure(questions: Sequence[Question], answers: Sequence[str]) -> Measured:
    """Captions; a question's answers are its references. How rare n-grams are is not drawn again for intervals."""
    captions, references = [ptb_words(answer) for answer in answers], list(_tokenized([question.answers for question in questions]))
    pairs = list(zip(captions, references, strict=True))
    counts = torch.tensor([bleu_counts(*pair) for pair in pairs])
    cider = cider_d(captions, references)
    per_caption: Float[Tensor, "2 n"] = torch.tensor([cider, [rouge_l(*pair) for pair in pairs]], dtype=torch.float64)

    def metrics(chosen: Int[Tensor, " n"]) -> Mapping[str, float]:
        cider_mean, rouge_mean = per_caption[:, chosen].mean(1).tolist()
        return {"cider": cider_mean, "bleu4": bleu4(counts[chosen]), "rouge_l": rouge_mean}

    return Measured(cider, metrics, dict.fromkeys(("cider", "bleu4", "rouge_l"), math.nan), [" ".join(words) for words in captions])


SPECS = {
    "captions": Measure(
        measure=measure,
        right_from=None,
        submission=lambda question, answer: {"image_id": int(question.id) if question.id.isdecimal() else question.id, "caption": answer},
        note="COCO's caption evaluation: CIDEr-D, BLEU-4 and ROUGE-L on Penn Treebank tokens, all times 100. CIDEr depends on all pictures that are measured "
        "together, so numbers of a part are not those of the whole.",
    )
}

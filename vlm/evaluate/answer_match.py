"""Generated answers against their references: exact match and F1 of words, normalized as SQuAD does (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).

For short English answers. A caption is hardly ever matched exactly, and a script without spaces counts as one word. Knows no model.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from vlm.tracking import Shown

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles; the order is that of SQuAD's evaluation script."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def exact_match(generated: str, reference: str) -> bool:
    """True if the words are the same, in the same order."""
    return words_of(generated) == words_of(reference)


def token_f1(generated: str, reference: str) -> float:
    """Harmonic mean of the share of generated words that the reference has and of reference words that were generated, 0 to 1; two empty texts agree."""
    said, wanted = words_of(generated), words_of(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def answer_metrics(samples: Sequence[Shown]) -> Mapping[str, float]:
    """Means over validation answers; nothing without any."""
    if not samples:
        return {}
    return {
        "validation/exact_match": sum(exact_match(sample.generated, sample.reference) for sample in samples) / len(samples),
        "validation/token_f1": sum(token_f1(sample.generated, sample.reference) for sample in samples) / len(samples),
    }

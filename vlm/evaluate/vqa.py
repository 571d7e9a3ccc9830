"""Visual question answering with one right answer: exact match by question type, with the controls that show whether the picture was used.

Two controls stand beside every accuracy: the same model with the pictures exchanged, and the best answer from the question alone (Goyal et al. 2017,
arXiv:1612.00837, on why). Knows samples and models, no dataset.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.evaluate.validation import evaluating, first_question
from vlm.models.generate import Sampling, generate
from vlm.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Answered:
    """A question with the model's answer."""

    sample: Sample
    question: str
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        """Equal to the true answer, letter case and a final full stop apart."""
        return normalize(self.answer) == normalize(self.truth)


def normalize(answer: str) -> str:
    """Lower case, without outer space and final full stop."""
    return answer.strip().lower().removesuffix(".")


def answer_all(model: VisionLanguageModel, samples: Sequence[Sample], *, batch_size: int = 32, max_new_tokens: int = 5) -> list[Answered]:
    """Greedy answers to the first question of each sample.

    Args:
        model: The model.
        samples: Samples whose first turns are a question and its answer.
        batch_size: Prompts at once.
        max_new_tokens: Longest answer in tokens.
    """
    answered = []
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        asked = [first_question(sample) for sample in chunk]
        with evaluating(model):
            answers = generate(model, [prompt for prompt, _ in asked], Sampling(max_new_tokens=max_new_tokens))
        answered += [
            Answered(sample, prompt.messages[-1].text, truth, answer) for sample, (prompt, truth), answer in zip(chunk, asked, answers, strict=True)
        ]
    return answered


def exchange_images(samples: Sequence[Sample], *, seed: int) -> list[Sample]:
    """The same samples in the same order, each with the pictures of another one, and never with its own; those without pictures stay as they are.

    Samples are sorted by picture, in random order of the pictures; each then gets the pictures of the one so far behind it that no picture's run of
    samples is that long.

    Raises:
        DataFormatError: If more than half of the samples show the same picture, so that there is not another one for each.
    """
    generator = torch.Generator().manual_seed(seed)
    exchanged = list(samples)
    for num_images in sorted({len(sample.images) for sample in samples} - {0}):
        places = [i for i, sample in enumerate(samples) if len(sample.images) == num_images]
        counts = Counter(samples[i].images for i in places)
        shift = max(counts.values())
        if 2 * shift > len(places):
            raise DataFormatError(
                f"{shift} of {len(places)} samples show the same picture, so there is not another picture for each. Take more samples."
            )
        ranks = dict(zip(counts, torch.randperm(len(counts), generator=generator).tolist(), strict=True))
        order = sorted(places, key=lambda i: ranks[samples[i].images])
        for i, j in zip(order, order[shift:] + order[:shift], strict=True):
            exchanged[i] = replace(samples[i], images=samples[j].images)
    return exchanged


def accuracy_by_type(answered: Sequence[Answered]) -> dict[str, float]:
    """Share of right answers for each `type` that the samples state."""
    right: dict[str, list[bool]] = defaultdict(list)
    for item in answered:
        right[item.sample.extra.get("type", "all")].append(item.right)
    return {kind: sum(values) / len(values) for kind, values in sorted(right.items())}


def chance_by_type(samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of a uniform guess among the answers that occur for each type."""
    answers: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        answers[sample.extra.get("type", "all")].add(normalize(truth_of(sample)))
    return {kind: 1 / len(values) for kind, values in sorted(answers.items())}


def best_blind_answers(training: Sequence[Sample]) -> Mapping[str, str]:
    """The most frequent training answer to each question, whatever the picture; ties go to the answer seen first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        counts[question_of(sample)][truth_of(sample)] += 1
    return {question: counter.most_common(1)[0][0] for question, counter in counts.items()}


def answer_blind(samples: Sequence[Sample], blind: Mapping[str, str]) -> list[Answered]:
    """The answers of someone who knows the training answers and sees no picture; an unknown question gets none."""
    return [Answered(sample, question_of(sample), truth_of(sample), blind.get(question_of(sample), "")) for sample in samples]


def question_of(sample: Sample) -> str:
    """The first user turn, placeholders removed."""
    return next(m.text for m in sample.messages if m.role == "user").replace("<image>", "").strip()


def truth_of(sample: Sample) -> str:
    """The first answer.

    Raises:
        DataFormatError: If the sample has none.
    """
    for message in sample.messages:
        if message.role == "assistant":
            return message.text
    raise DataFormatError(f"Sample {sample.id!r} has no answer to compare with.")

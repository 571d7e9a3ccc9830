"""Captions of held-out pictures, judged by likelihood: is the right caption more likely with its own picture, and the most likely of all captions?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.evaluate.validation import evaluating, first_question
from vlm.evaluate.vqa import truth_of
from vlm.models.score import answer_log_probs
from vlm.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class CaptionRanking:
    """Likelihoods of captions.

    Attributes:
        nll_matched: Mean negative log-likelihood of the true caption, in nats a caption, with its own picture.
        nll_shuffled: The same with the picture of another sample, averaged over all other pictures; some of them may have the same caption, and then
            it comes out lower than with pictures of other captions alone.
        caption_accuracy: Share of pictures whose true caption is the most likely of all candidates.
        caption_chance: Accuracy of a uniform guess.
    """

    nll_matched: float
    nll_shuffled: float
    caption_accuracy: float
    caption_chance: float


def rank_captions(model: VisionLanguageModel, samples: Sequence[Sample], captions: Sequence[str], *, batch_size: int = 16) -> CaptionRanking:
    """Score every candidate caption with every picture.

    Args:
        model: The model.
        samples: Samples whose first turns are a request and its caption.
        captions: Candidates, the true captions among them.
        batch_size: Pictures at once.

    Raises:
        DataFormatError: If a sample's caption is not among the candidates, or there is only one sample.
    """
    truth = torch.tensor([_place(sample, captions) for sample in samples])
    if len(samples) < 2:
        raise DataFormatError(f"Ranking captions needs at least 2 samples, to compare with other pictures; got {len(samples)}.")
    rows = []
    for start in range(0, len(samples), batch_size):
        prompts = [first_question(sample)[0] for sample in samples[start : start + batch_size]]
        with evaluating(model):
            rows.append(answer_log_probs(model, prompts, captions).float().cpu())
    scores = torch.cat(rows)  # [samples, captions]
    mismatched = [mean_elsewhere(scores, truth, i) for i in range(len(samples))]
    return CaptionRanking(
        nll_matched=-scores.gather(1, truth[:, None]).mean().item(),
        nll_shuffled=-sum(mismatched) / len(mismatched),
        caption_accuracy=(scores.argmax(1) == truth).float().mean().item(),
        caption_chance=1 / len(captions),
    )


def _place(sample: Sample, captions: Sequence[str]) -> int:
    caption = truth_of(sample)
    if caption not in captions:
        raise DataFormatError(f"Sample {sample.id!r} has the caption {caption!r}, which is not among the {len(captions)} candidates.")
    return captions.index(caption)


def mean_elsewhere(scores: torch.Tensor, truth: torch.Tensor, index: int) -> float:
    """Mean score of a picture's true caption over all other pictures: the expectation over random exchanges of pictures."""
    column = scores[:, truth[index]]
    return ((column.sum() - column[index]) / (len(column) - 1)).item()

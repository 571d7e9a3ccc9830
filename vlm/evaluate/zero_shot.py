"""Zero-shot classification with prompt ensembles (Radford et al. 2021, arXiv:2103.00020, section 3.1.4), in the definitions of CLIP_benchmark 1.6.2.

The metrics are functions of scores; of classes with equal scores, the one with the lower number goes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm.data.benchmarks.base import Labelled
from vlm.errors import DataFormatError
from vlm.evaluate.bootstrap import Score, with_intervals
from vlm.evaluate.embedder import Embedder, Progress, Unreadable, encode_pictures, encode_texts, no_progress, refuse_equal_models

TASK = "zeroshot_classification"  # CLIP_benchmark's name
NAN = float("nan")
TOP = 5

Labels = Int[Tensor, " N"] | Bool[Tensor, "N C"]


@dataclass(frozen=True)
class ZeroShotResult:
    """One model.

    Attributes:
        model: Its name.
        scores: Metrics by CLIP_benchmark's names.
        similarity: Cosine of each picture with each class.
        confusion: Pictures by true class and predicted class; None where a picture may be of several classes.
    """

    model: str
    scores: Mapping[str, Score]
    similarity: Float[Tensor, "N C"]
    confusion: Int[Tensor, "C C"] | None


@dataclass(frozen=True)
class ZeroShot:
    """Models on one dataset.

    Attributes:
        data: The pictures that could be read, with their classes.
        num_templates: Prompts of each class.
        results: One for each model.
        unreadable: Pictures that are not measured.
    """

    data: Labelled
    num_templates: int
    results: Sequence[ZeroShotResult]
    unreadable: Sequence[Unreadable]


def evaluate_zero_shot(
    embedders: Sequence[Embedder],
    data: Labelled,
    prompts: Sequence[Sequence[str]],
    *,
    batch_size: int = 64,
    workers: int = 4,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ZeroShot:
    """Classify the pictures with every model. Intervals are over pictures.

    Args:
        embedders: The models.
        data: Pictures and classes.
        prompts: Texts of each class.
        batch_size: Pictures at once.
        workers: Threads that decode pictures.
        resamples: Draws of the bootstrap.
        seed: Its seed.
        progress: Shows how far it is.

    Raises:
        DataFormatError: If a class has no prompt, or no picture can be read.
        ConfigError: If there is no model, two have the same name, or one gives values that are not finite.
    """
    refuse_equal_models(embedders)
    if len(prompts) != len(data.class_names) or not all(prompts):
        raise DataFormatError(f"{len(prompts)} lists of prompts for {len(data.class_names)} classes; expected one for each, none of them empty.")
    encoded = encode_pictures(embedders, data.pictures, batch_size=batch_size, workers=workers, progress=progress)
    kept = replace(data, pictures=[data.pictures[i] for i in encoded.kept], labels=data.labels[torch.tensor(encoded.kept)])
    results = []
    for embedder in embedders:
        texts = encode_texts(embedder, [prompt for own in prompts for prompt in own], progress=progress)
        similarity = encoded.features[embedder.name] @ class_vectors(texts.split([len(own) for own in prompts])).T
        results.append(_result(embedder.name, similarity, kept.labels, resamples=resamples, seed=seed))
    return ZeroShot(kept, max(map(len, prompts)), results, encoded.unreadable)


def class_vectors(prompts: Sequence[Float[Tensor, "_ J"]]) -> Float[Tensor, "C J"]:
    """The classifier: of each class the normalized mean of its normalized prompts."""
    return F.normalize(torch.stack([F.normalize(own, dim=-1).mean(0) for own in prompts]), dim=-1)


def zero_shot_metrics(similarity: Float[Tensor, "N C"], labels: Labels) -> dict[str, float]:
    """Metrics by CLIP_benchmark's names: acc1, acc5 and mean_per_class_recall, or mean_average_precision where a picture may be of several classes."""
    if labels.ndim == 2:
        return {"mean_average_precision": average_precisions(similarity, labels).mean().item()}
    places, classes = label_places(similarity, labels), similarity.shape[1]
    return {
        "acc1": accuracy(places, 1, classes),
        "acc5": accuracy(places, TOP, classes),
        "mean_per_class_recall": mean_per_class_recall(places, labels),
    }


def label_places(similarity: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """How many classes go before the true one."""
    own = similarity.gather(1, labels[:, None])
    earlier = torch.arange(similarity.shape[1]) < labels[:, None]
    return ((similarity > own) | ((similarity == own) & earlier)).sum(1)


def accuracy(places: Int[Tensor, " N"], k: int, num_classes: int) -> float:
    """Share of pictures whose true class is among the first k; NaN with fewer than k classes."""
    return (places < k).double().mean().item() if num_classes >= k else NAN


def mean_per_class_recall(places: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """Mean over the classes that have pictures (scikit-learn's `balanced_accuracy_score`)."""
    counts = labels.bincount()
    hits = labels[places == 0].bincount(minlength=len(counts))
    return (hits[counts > 0] / counts[counts > 0].double()).mean().item()


def average_precisions(similarity: Float[Tensor, "N C"], labels: Bool[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """Of each class, the mean precision at the places of its pictures; 0 for a class without any. Equal scores stay in the order of the pictures."""
    order = similarity.sort(dim=0, descending=True, stable=True).indices
    truth = labels.gather(0, order).double()
    precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1, dtype=torch.float64)[:, None]
    return (precision * truth).sum(0) / truth.sum(0).clamp(min=1)


def chance_levels(labels: Labels, num_classes: int) -> dict[str, float]:
    """What guessing reaches: a uniform order of the classes; of the pictures, for mean average precision."""
    if labels.ndim == 2:
        return {"mean_average_precision": _chance_precision(labels.sum(0).double(), len(labels)).mean().item()}
    return {"acc1": 1 / num_classes, "acc5": TOP / num_classes if num_classes >= TOP else NAN, "mean_per_class_recall": 1 / num_classes}


def _chance_precision(positives: Float[Tensor, " C"], count: int) -> Float[Tensor, " C"]:
    """Expected average precision of a random order: ((R-1)/(N-1) (N - H_N) + H_N) / N with R positives of N, and H_N = 1 + 1/2 + ... + 1/N."""
    harmonic = (1 / torch.arange(1, count + 1, dtype=torch.float64)).sum()
    expected = ((positives - 1) / max(count - 1, 1) * (count - harmonic) + harmonic) / count
    return torch.where(positives > 0, expected, 0.0)


def confusion_matrix(labels: Int[Tensor, " N"], predicted: Int[Tensor, " N"], num_classes: int) -> Int[Tensor, "C C"]:
    """Pictures by true class (row) and predicted class (column)."""
    return (labels * num_classes + predicted).bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def _result(model: str, similarity: Float[Tensor, "N C"], labels: Labels, *, resamples: int, seed: int) -> ZeroShotResult:
    num_classes = similarity.shape[1]
    chance = chance_levels(labels, num_classes)
    if labels.ndim == 2:
        scores = with_intervals(lambda i: zero_shot_metrics(similarity[i], labels[i]), len(labels), chance, resamples=resamples, seed=seed)
        return ZeroShotResult(model, scores, similarity, None)
    places = label_places(similarity, labels)  # once, not for every draw

    def metrics(i: Tensor) -> dict[str, float]:
        own = places[i]
        return {
            "acc1": accuracy(own, 1, num_classes),
            "acc5": accuracy(own, TOP, num_classes),
            "mean_per_class_recall": mean_per_class_recall(own, labels[i]),
        }

    scores = with_intervals(metrics, len(labels), chance, resamples=resamples, seed=seed)
    return ZeroShotResult(model, scores, similarity, confusion_matrix(labels, similarity.argmax(1), num_classes))

"""Retrieval between pictures and captions in both directions, several captions a picture, in the definitions of CLIP_benchmark 1.6.2.

image_retrieval_recall@k: share of captions whose picture is among the first k pictures.
text_retrieval_recall@k: share of pictures of which at least one caption is among the first k captions.
Of items with equal scores, the one with the lower number goes first, as a stable sort has it: a model that gives the same vector for everything comes out
at chance. (CLIP_benchmark leaves the order of equal scores to `torch.topk`.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.data.benchmarks.captioned import Captioned
from vlm.errors import DataFormatError
from vlm.evaluate.bootstrap import Score, with_intervals
from vlm.evaluate.embedder import Embedder, Progress, Unreadable, encode_pictures, encode_texts, no_progress, refuse_equal_models

TASK = "zeroshot_retrieval"  # CLIP_benchmark's name
KS = (1, 5, 10)
BLOCK = 512  # queries whose scores are held at once: 50 MB with 25,010 captions


@dataclass(frozen=True)
class RetrievalResult:
    """One model.

    Attributes:
        model: Its name.
        scores: Metrics by CLIP_benchmark's names.
        images: Unit vectors of the pictures.
        texts: Unit vectors of the captions.
    """

    model: str
    scores: Mapping[str, Score]
    images: Float[Tensor, "N J"]
    texts: Float[Tensor, "M J"]


@dataclass(frozen=True)
class Retrieval:
    """Models on one dataset.

    Attributes:
        data: The pictures that could be read, with their captions.
        results: One for each model.
        unreadable: Pictures that are not measured, nor are their captions.
    """

    data: Captioned
    results: Sequence[RetrievalResult]
    unreadable: Sequence[Unreadable]


def evaluate_retrieval(
    embedders: Sequence[Embedder],
    data: Captioned,
    *,
    ks: Sequence[int] = KS,
    batch_size: int = 64,
    workers: int = 4,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Retrieval:
    """Measure every model. Intervals are over pictures, each with its captions; what is searched stays the same.

    Args:
        embedders: The models.
        data: Pictures and captions.
        ks: How many of the first places count.
        batch_size: Pictures at once.
        workers: Threads that decode pictures.
        resamples: Draws of the bootstrap.
        seed: Its seed.
        progress: Shows how far it is.

    Raises:
        DataFormatError: If no picture can be read.
        ConfigError: If there is no model, two have the same name, or one gives values that are not finite.
    """
    refuse_equal_models(embedders)
    encoded = encode_pictures(embedders, data.pictures, batch_size=batch_size, workers=workers, progress=progress)
    kept = select_pictures(data, encoded.kept)
    results = []
    for embedder in embedders:
        images, texts = encoded.features[embedder.name], encode_texts(embedder, kept.captions, progress=progress)
        places = both_places(images, texts, kept.owners)
        chance = chance_levels(kept.owners, ks)
        scores = with_intervals(lambda i: recalls(*places, kept.owners, ks, chosen=i), len(images), chance, resamples=resamples, seed=seed)  # noqa: B023
        results.append(RetrievalResult(embedder.name, scores, images, texts))
    return Retrieval(kept, results, encoded.unreadable)


def select_pictures(data: Captioned, kept: Sequence[int]) -> Captioned:
    """Some of the pictures, with their captions."""
    new = torch.full((len(data.pictures),), -1)
    new[torch.tensor(kept)] = torch.arange(len(kept))
    owners = new[data.owners]
    captions = [caption for caption, owner in zip(data.captions, owners.tolist(), strict=True) if owner >= 0]
    return replace(data, pictures=[data.pictures[i] for i in kept], captions=captions, owners=owners[owners >= 0])


def retrieval_metrics(
    images: Float[Tensor, "N J"], texts: Float[Tensor, "M J"], owners: Int[Tensor, " M"], ks: Sequence[int] = KS, *, block: int = BLOCK
) -> dict[str, float]:
    """Recall in both directions by CLIP_benchmark's names; NaN where k is more than there are items.

    Args:
        images: Unit vectors of pictures.
        texts: Unit vectors of captions.
        owners: Number of each caption's picture.
        ks: How many of the first places count.
        block: Queries whose scores are held at once.

    Raises:
        DataFormatError: If a picture has no caption.
    """
    return recalls(*both_places(images, texts, owners, block=block), owners, ks)


def both_places(
    images: Float[Tensor, "N J"], texts: Float[Tensor, "M J"], owners: Int[Tensor, " M"], *, block: int = BLOCK
) -> tuple[Int[Tensor, " M"], Int[Tensor, " N"]]:
    """For each caption the place of its picture, and for each picture the place of its first caption.

    Raises:
        DataFormatError: If a picture has no caption.
    """
    without = (owners.bincount(minlength=len(images)) == 0).nonzero().flatten()
    if len(without):
        raise DataFormatError(f"{len(without)} of {len(images)} pictures have no caption, first number {int(without[0])}.")
    numbers = torch.arange(len(images))
    return first_hits(texts, images, owners, numbers, block=block), first_hits(images, texts, numbers, owners, block=block)


def first_hits(
    queries: Float[Tensor, "Q J"], items: Float[Tensor, "I J"], wanted: Int[Tensor, " Q"], owners: Int[Tensor, " I"], *, block: int = BLOCK
) -> Int[Tensor, " Q"]:
    """How many items go before the first right one, for each query: 0 if the nearest item is right.

    Args:
        queries: Unit vectors.
        items: Unit vectors of what is searched.
        wanted: Owner that makes an item right, for each query.
        owners: Owner of each item.
        block: Queries whose scores are held at once.
    """
    numbers = torch.arange(len(items))
    places = []
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ items.T  # [block, items]
        right = owners == wanted[start : start + block, None]
        best = scores.masked_fill(~right, -math.inf).argmax(1, keepdim=True)  # of equal ones the first
        score = scores.gather(1, best)
        places.append(((scores > score) | ((scores == score) & (numbers < best))).sum(1))
    return torch.cat(places)


def recalls(
    of_captions: Int[Tensor, " M"],
    of_pictures: Int[Tensor, " N"],
    owners: Int[Tensor, " M"],
    ks: Sequence[int],
    *,
    chosen: Int[Tensor, " n"] | None = None,
) -> dict[str, float]:
    """Recalls from places.

    Args:
        of_captions: Place of each caption's picture.
        of_pictures: Place of each picture's first caption.
        owners: Number of each caption's picture.
        ks: How many of the first places count.
        chosen: Pictures that are measured, with their captions, any of them several times; None for each once.
    """
    count, total = len(of_pictures), len(of_captions)
    times = torch.ones(count) if chosen is None else chosen.bincount(minlength=count).float()
    of_owner = times[owners]
    pictures = {k: ((of_captions < k).float() @ of_owner / of_owner.sum()).item() if k <= count else math.nan for k in ks}
    captions = {k: ((of_pictures < k).float() @ times / times.sum()).item() if k <= total else math.nan for k in ks}
    return _named(pictures, captions)


def _named(pictures: Mapping[int, float], captions: Mapping[int, float]) -> dict[str, float]:
    return {
        **{f"image_retrieval_recall@{k}": value for k, value in pictures.items()},
        **{f"text_retrieval_recall@{k}": value for k, value in captions.items()},
    }


def chance_levels(owners: Int[Tensor, " M"], ks: Sequence[int]) -> dict[str, float]:
    """Recall of a random order: k of N pictures; and that one of a picture's m captions is among k of M, 1 - C(M-m, k) / C(M, k)."""
    captions = owners.bincount()
    count, total = len(captions), len(owners)
    pictures = {k: k / count if k <= count else math.nan for k in ks}
    missed = {k: [math.comb(total - own, k) / math.comb(total, k) for own in captions.tolist()] for k in ks if k <= total}
    return _named(pictures, {k: 1 - sum(missed[k]) / count if k in missed else math.nan for k in ks})

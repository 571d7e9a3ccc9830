"""Examples of what a model finds: the nearest pictures of a text, and the nearest texts of a picture. Chosen at random, failures among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm.evaluate.retrieval import Retrieval
from vlm.evaluate.zero_shot import ZeroShot

NEAREST = 5


@dataclass(frozen=True)
class Found:
    """One item that a query found.

    Attributes:
        item: Its number.
        score: Cosine.
        right: Whether it is what was looked for.
    """

    item: int
    score: float
    right: bool


@dataclass(frozen=True)
class Query:
    """One query with what each model finds.

    Attributes:
        number: Of the picture or text that is asked with.
        found: The nearest items by model.
        place: Place of the first right item by model, from 1; 0 if there is none.
    """

    number: int
    found: Mapping[str, Sequence[Found]]
    place: Mapping[str, int]


@dataclass(frozen=True)
class Neighbors:
    """Examples in both directions.

    Attributes:
        to_pictures: Texts, and the pictures nearest to them.
        to_texts: Pictures, and the texts nearest to them.
    """

    to_pictures: Sequence[Query]
    to_texts: Sequence[Query]


def of_retrieval(measured: Retrieval, count: int, *, seed: int = 0) -> Neighbors:
    """Captions with their nearest pictures, and pictures with their nearest captions."""
    owners = measured.data.owners
    pictures, texts = _choose(len(measured.data.pictures), count, seed), _choose(len(owners), count, seed)
    to_pictures = {result.model: result.texts[texts] @ result.images.T for result in measured.results}
    to_texts = {result.model: result.images[pictures] @ result.texts.T for result in measured.results}
    numbers = torch.arange(len(measured.data.pictures))
    return Neighbors(_queries(texts, to_pictures, numbers == owners[texts][:, None]), _queries(pictures, to_texts, owners == pictures[:, None]))


def of_zero_shot(measured: ZeroShot, count: int, *, seed: int = 0) -> Neighbors:
    """Classes with their nearest pictures, and pictures with their nearest classes."""
    labels, num_classes = measured.data.labels, len(measured.data.class_names)
    truth = labels if labels.ndim == 2 else labels[:, None] == torch.arange(num_classes)  # [N, C]
    pictures, classes = _choose(len(labels), count, seed), _choose(num_classes, count, seed)
    to_pictures = {result.model: result.similarity.T[classes] for result in measured.results}
    to_texts = {result.model: result.similarity[pictures] for result in measured.results}
    return Neighbors(_queries(classes, to_pictures, truth.T[classes]), _queries(pictures, to_texts, truth[pictures]))


def _choose(total: int, count: int, seed: int) -> Int[Tensor, " n"]:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def _queries(numbers: Int[Tensor, " n"], scores: Mapping[str, Float[Tensor, "n I"]], right: Bool[Tensor, "n I"]) -> list[Query]:
    queries = []
    for row, number in enumerate(numbers.tolist()):
        found, place = {}, {}
        for model, values in scores.items():
            order = values[row].sort(descending=True, stable=True).indices
            hits = right[row][order].nonzero().flatten()
            found[model] = [Found(i, values[row, i].item(), bool(right[row, i])) for i in order[:NEAREST].tolist()]
            place[model] = int(hits[0]) + 1 if len(hits) else 0
        queries.append(Query(number, found, place))
    return queries

"""Pictures and texts to unit vectors, once for each model; pictures that cannot be read are counted, never dropped in silence.

Knows of a model only that it encodes. J is the width of a model's joint space.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm.data.benchmarks.base import Picture
from vlm.errors import ConfigError, DataFormatError

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@runtime_checkable
class Embedder(Protocol):
    """A model that puts pictures and texts into one space; vectors need not be normalized."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def encode_images(self, images: Sequence[Image.Image], /) -> Float[Tensor, "B J"]:
        """One vector a picture."""
        ...

    def encode_texts(self, texts: Sequence[str], /) -> Float[Tensor, "B J"]:
        """One vector a text."""
        ...


@dataclass(frozen=True)
class NamedEmbedder:
    """An `Embedder` of two functions: `NamedEmbedder("clip", model.encode_image, model.encode_text)`."""

    name: str
    encode_images: Callable[[Sequence[Image.Image]], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class EncodedPictures:
    """The pictures that could be read, the same for all models.

    Attributes:
        features: Unit vectors by the model's name.
        kept: Positions of these pictures, ascending.
        unreadable: The others.
    """

    features: Mapping[str, Float[Tensor, "N _"]]
    kept: list[int]
    unreadable: list[Unreadable]


def no_progress(items: Iterable[Any], _: str) -> Iterable[Any]:
    """Shows nothing."""
    return items


def refuse_equal_models(embedders: Sequence[Embedder]) -> None:
    """Make sure that there is a model and that names tell models apart.

    Raises:
        ConfigError: If that is not so.
    """
    names = [embedder.name for embedder in embedders]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"Name at least one model, and each once; got {', '.join(names) or 'none'}.")


@torch.inference_mode()
def encode_pictures(
    embedders: Sequence[Embedder], pictures: Sequence[Picture], *, batch_size: int = 64, workers: int = 4, progress: Progress = no_progress
) -> EncodedPictures:
    """Open each picture once, and encode it with every model.

    Args:
        embedders: The models.
        pictures: The pictures.
        batch_size: Pictures at once.
        workers: Threads that decode pictures, one batch ahead.
        progress: Shows how far it is.

    Raises:
        DataFormatError: If no picture can be used.
        ConfigError: If a model gives values that are not finite.
    """
    batches: dict[str, list[Tensor]] = {embedder.name: [] for embedder in embedders}
    kept: list[int] = []
    unreadable: list[Unreadable] = []
    starts = range(0, len(pictures), batch_size)
    chunks = [range(start, min(start + batch_size, len(pictures))) for start in starts]
    with ThreadPoolExecutor(workers) as threads:
        opened = _one_ahead(lambda chunk: [threads.submit(_open, pictures[i]) for i in chunk], chunks)
        for chunk in progress(chunks, "Encoding pictures"):
            images = {i: future.result() for i, future in zip(chunk, next(opened), strict=True)}
            faults = {i: str(image) for i, image in images.items() if isinstance(image, DataFormatError)}
            encoded = _encode(embedders, {i: image for i, image in images.items() if isinstance(image, Image.Image)}, faults)
            unreadable += [Unreadable(pictures[i].id, faults[i]) for i in sorted(faults)]
            kept += [i for i in chunk if i not in faults]
            for name, features in encoded.items():
                batches[name].append(features)
    if not kept:
        raise DataFormatError(f"None of {len(pictures)} pictures can be read; the first: {unreadable[0].reason if unreadable else 'there is none.'}")
    ids = [pictures[i].id for i in kept]
    return EncodedPictures({name: unit_vectors(torch.cat(parts), of=ids, model=name) for name, parts in batches.items()}, kept, unreadable)


def _one_ahead(start: Callable[[range], list[Any]], chunks: Sequence[range]) -> Iterator[list[Any]]:
    """What `start` returns for each chunk, that of the next one being under way."""
    ahead: list[Any] | None = None
    for chunk in chunks:
        current, ahead = ahead, start(chunk)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead


def _open(picture: Picture) -> Image.Image | DataFormatError:
    try:
        return picture.open()
    except DataFormatError as error:
        return error


def _encode(embedders: Sequence[Embedder], images: Mapping[int, Image.Image], faults: dict[int, str]) -> dict[str, Tensor]:
    """Features by model; pictures that a model refuses, for their shape, go into `faults`."""
    if not images:
        return {}
    try:
        return {embedder.name: _rows(embedder.encode_images(list(images.values())), len(images), embedder.name) for embedder in embedders}
    except DataFormatError as error:
        if len(images) == 1:
            faults[next(iter(images))] = str(error)
            return {}
    single = [_encode(embedders, {i: image}, faults) for i, image in images.items()]
    return {embedder.name: torch.cat(found) for embedder in embedders if (found := [one[embedder.name] for one in single if one])}


@torch.inference_mode()
def encode_texts(embedder: Embedder, texts: Sequence[str], *, batch_size: int = 256, progress: Progress = no_progress) -> Float[Tensor, "M J"]:
    """Unit vectors of texts. Equal texts are encoded once; a batch holds texts of similar length.

    Raises:
        ConfigError: If the model gives values that are not finite.
    """
    unique = sorted(dict.fromkeys(texts), key=len)
    chunks = [unique[start : start + batch_size] for start in range(0, len(unique), batch_size)]
    encoded = [_rows(embedder.encode_texts(chunk), len(chunk), embedder.name) for chunk in progress(chunks, f"Encoding texts with {embedder.name}")]
    place = {text: i for i, text in enumerate(unique)}
    return unit_vectors(torch.cat(encoded)[torch.tensor([place[text] for text in texts])], of=texts, model=embedder.name)


def _rows(features: Tensor, count: int, model: str) -> Tensor:
    if features.ndim != 2 or len(features) != count:
        raise ConfigError(f"The model {model!r} gave a tensor of shape {list(features.shape)} for {count} inputs; expected one vector each.")
    return features.float().cpu()


def unit_vectors(features: Float[Tensor, "N J"], *, of: Sequence[str], model: str) -> Float[Tensor, "N J"]:
    """Rows of length 1.

    Raises:
        ConfigError: If a row is not finite: comparisons with NaN are all false, and would count as hits.
    """
    broken = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ConfigError(
            f"The model {model!r} gave values that are not finite for {len(broken)} of {len(features)} inputs, first for {of[broken[0]]!r}. "
            "Half precision may have overflowed; try fp32."
        )
    return F.normalize(features, dim=-1)

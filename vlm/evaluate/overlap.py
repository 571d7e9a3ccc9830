"""Whether a model is measured on pictures that it was trained on: by the pictures' ids and by the hashes of their content. Knows no model."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vlm.data.benchmarks.base import Picture
from vlm.data.sample import Sample
from vlm.errors import ConfigError

NAMED = 5  # ids that a message lists


@dataclass(frozen=True)
class Known:
    """What is known of pictures, in their order.

    Attributes:
        ids: Their ids.
        hashes: Hashes of their content; empty for a picture whose hash cannot matter, or that cannot be read.
    """

    ids: tuple[str, ...]
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Evaluated pictures that were trained on.

    Attributes:
        ids: Their ids, in the order of the evaluation.
        by_id: How many have the id of a training picture.
        by_content: How many have its content.
        total: Evaluated pictures.
    """

    ids: tuple[str, ...]
    by_id: int
    by_content: int
    total: int

    def __str__(self) -> str:
        if not self.ids:
            return f"None of {self.total:,} pictures was trained on, by id and by content."
        share = 100 * len(self.ids) / self.total
        first = ", ".join(self.ids[:NAMED]) + (", ..." if len(self.ids) > NAMED else "")
        return (
            f"{f'{share:.0f}' if share >= 1 else f'{share:.2g}'} % of these images were trained on: "
            f"{len(self.ids):,} of {self.total:,} ({self.by_id:,} by id, {self.by_content:,} by content), first {first}."
        )


def known(pictures: Iterable[Picture], *, sizes: Collection[int] | None = None, pixels: bool = False, workers: int = 8) -> Known:
    """Ids and hashes of pictures.

    Args:
        pictures: The pictures.
        sizes: Sizes in bytes of those that they will be compared with; files of other sizes are not read, because they cannot be equal.
        pixels: Hash decoded pixels instead of a file's bytes: finds pictures that were packed again without loss, and is slower. `sizes` is not used then.
        workers: Threads that read files.
    """

    def hashed(picture: Picture) -> str:
        if pixels:
            return picture.pixels_sha256()
        return picture.sha256() if sizes is None or picture.num_bytes in sizes else ""

    pictures = list(pictures)
    with ThreadPoolExecutor(workers) as threads:
        return Known(tuple(picture.id for picture in pictures), tuple(threads.map(hashed, pictures)))


def refuse_overlap(train: Known, evaluated: Known, *, allow: bool) -> Overlap:
    """Make sure that no evaluated picture was trained on.

    Args:
        train: Training pictures.
        evaluated: Evaluated pictures.
        allow: Return the overlap, to be printed beside the numbers, instead of raising.

    Raises:
        ConfigError: If pictures overlap, unless that is allowed; says how many, and the first ids.
    """
    ids, hashes = set(train.ids), set(train.hashes) - {""}
    same_id = [id in ids for id in evaluated.ids]
    same_content = [digest in hashes for digest in evaluated.hashes]
    both = tuple(id for id, *same in zip(evaluated.ids, same_id, same_content, strict=True) if any(same))
    overlap = Overlap(both, sum(same_id), sum(same_content), len(evaluated.ids))
    if both and not allow:
        raise ConfigError(f"{overlap} Evaluate on other pictures, or state it in the report with --allow-overlap.")
    return overlap


def compare(trained: Sequence[Picture], evaluated: Sequence[Picture], *, pixels: bool = False, allow: bool = False) -> Overlap:
    """Make sure that no evaluated picture was trained on; of training pictures, only files of the size of an evaluated one are read.

    Args:
        trained: Training pictures.
        evaluated: Evaluated pictures.
        pixels: As of `known`.
        allow: As of `refuse_overlap`.

    Raises:
        ConfigError: As `refuse_overlap`.
    """
    sizes = {picture.num_bytes for picture in evaluated}
    return refuse_overlap(known(trained, sizes=sizes, pixels=pixels), known(evaluated, pixels=pixels), allow=allow)


def pictures_of(samples: Iterable[Sample]) -> list[Picture]:
    """The pictures of a training set, each once: by the `image_id` that its reader gives, or else by path."""
    found = {}
    for sample in samples:
        for image in sample.images:
            found[image] = Picture(sample.extra.get("image_id") or str(image), image)
    return list(found.values())

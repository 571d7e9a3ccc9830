"""Datasets that are one list of conversations as LLaVA writes them, and archives of pictures. Knows none of them by name."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.datasets.pictures import PicturePlace, Pictures
from vlm.data.sample import Row, Sample


def llava_list(annotations: Archive, found_in: Sequence[PicturePlace], *, pictured_only: bool = False, **about: Any) -> DatasetSpec:
    """The spec of such a dataset; it has one split, `train`.

    Args:
        annotations: The list.
        found_in: Where the pictures come from.
        pictured_only: Whether conversations without a picture are passed over.
        about: Further fields of the spec.
    """
    archives = tuple(dict.fromkeys((annotations, *(place.archive for place in found_in))))
    return DatasetSpec(open=partial(_open, annotations.file, found_in, pictured_only), archives=archives, **about)


def _open(annotations: str, found_in: Sequence[PicturePlace], pictured_only: bool, options: Any, places: Mapping[str, Path]) -> Source:
    pictures = Pictures(found_in, places)

    def rows(split: str) -> Iterator[Row]:
        from vlm.data.formats.llava import read_llava

        for row in read_llava(places[annotations]):
            if not (pictured_only and isinstance(row, Sample) and not row.images):
                yield pictures.with_real_suffixes(row)

    return Source(rows=rows, locate=pictures.locate)

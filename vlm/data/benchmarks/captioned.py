"""Pictures with one or several captions each, for retrieval: prepared datasets, Karpathy's JSON, rows with `captions`, or any data of the user's own.

    {"image": "a.jpg", "captions": ["A dog.", "A dog on grass."]}       .jsonl or .json, paths relative to the file; `id` is optional

Captions of the same picture belong together, whatever the order of the rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vlm.data.benchmarks.base import Picture
from vlm.data.formats.base import fields_of, image_of, list_of, shown, text_of
from vlm.data.formats.coco import read_karpathy
from vlm.data.formats.json_rows import beginning_of_rows, read_json_rows
from vlm.data.formats.sources import JSON_SUFFIXES
from vlm.data.reader import open_dataset
from vlm.data.sample import Row, Sample, refuse_faulty
from vlm.errors import ConfigError, DataFormatError

Captioning = tuple[str, Path, str]  # a picture's id, its file, one caption


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures and captions.

    Attributes:
        name: What results are filed under.
        pictures: The pictures.
        captions: All captions, those of a picture one after the other.
        owners: Number of each caption's picture.
    """

    name: str
    pictures: Sequence[Picture]
    captions: Sequence[str]
    owners: Int[Tensor, " M"]


def open_captioned(spec: str, *, data_root: Path, split: str = "", image_root: Path | None = None) -> Captioned:
    """Open pictures with captions.

    Args:
        spec: A prepared dataset by name (`coco-captions`), Karpathy's dataset_*.json, a JSON file of rows with `captions`, or what `open_dataset` takes.
        data_root: Folder of the prepared datasets.
        split: Which split, for prepared datasets and Karpathy's file; empty: test for the latter, and `open_dataset`'s choice for the former.
        image_root: Folder below which the pictures of a JSON file lie; None for the file's folder.

    Raises:
        ConfigError: If the data has no splits, or its pictures no root.
        DataFormatError: If a row has not exactly one picture, or no caption.
        UnknownNameError: If a dataset or split does not exist.
    """
    path = Path(spec)
    kind = _kind_of_json(path) if path.is_file() and path.suffix.lower() in JSON_SUFFIXES else ""
    if kind == "karpathy":
        rows = read_karpathy(path, split or "test")
        return grouped(path.stem, _of_samples(rows, image_root or path.parent), missing=f"{path} has no caption in the split {split or 'test'!r}.")
    if kind == "captions":
        if split:
            raise ConfigError(f"{path} is a file of rows, which has no split {split!r}. Give a file of its own for each split.")
        return grouped(path.stem, _of_rows(path, image_root or path.parent), missing=f"{path} has no caption.")
    if image_root is not None:
        raise ConfigError(f"--image-root is for JSON files that name pictures; {spec} has its pictures' places itself.")
    name = f"{spec}@{split}" if split else spec
    return grouped(
        path.stem if path.exists() else name, _of_samples(open_dataset(name, data_root=data_root), None), missing=f"{spec} has no caption."
    )


def grouped(name: str, captionings: Iterable[Captioning], *, missing: str) -> Captioned:
    """Captions under their pictures, both in the order of their first appearance.

    Raises:
        DataFormatError: If there is none, with `missing` as message.
    """
    files: dict[str, Path] = {}
    captions: dict[str, list[str]] = {}
    for id, file, caption in captionings:
        if files.setdefault(id, file) != file:
            raise DataFormatError(f"{name}: the picture {id!r} has two files, {files[id]} and {file}.")
        captions.setdefault(id, []).append(caption)
    if not files:
        raise DataFormatError(missing)
    owners = torch.tensor([number for number, id in enumerate(files) for _ in captions[id]])
    return Captioned(name, [Picture(id, file) for id, file in files.items()], [text for texts in captions.values() for text in texts], owners)


def _kind_of_json(path: Path) -> str:
    for _, row in islice(beginning_of_rows(path), 1):
        if isinstance(row, dict) and isinstance(row.get("images"), list) and row["images"]:
            return "karpathy" if "sentences" in row["images"][0] else ""
        if isinstance(row, dict) and "captions" in row:
            return "captions"
    return ""


def _of_samples(rows: Iterable[Row], root: Path | None) -> Iterator[Captioning]:
    """Of conversations, the first answer is the caption."""
    for sample in refuse_faulty(rows):
        assert isinstance(sample, Sample)
        if len(sample.images) != 1:
            raise DataFormatError(f"Sample {sample.id!r} has {len(sample.images)} pictures; retrieval is between captions and single pictures.")
        caption = next((message.text for message in sample.messages if message.role == "assistant"), "")
        if not caption:
            raise DataFormatError(f"Sample {sample.id!r} has no caption.")
        file = sample.images[0] if root is None else root / sample.images[0]
        yield sample.extra.get("image_id") or str(sample.images[0]), file, caption


def _of_rows(path: Path, root: Path) -> Iterator[Captioning]:
    for number, value in read_json_rows(path):
        try:
            image_id, image, captions = _parsed(value)
        except DataFormatError as error:
            raise DataFormatError(f"{path}, row {number}: {error}") from None
        for caption in captions:
            yield image_id, root / image, caption


def _parsed(value: Any) -> tuple[str, Path, list[str]]:
    if isinstance(value, DataFormatError):
        raise value
    row = fields_of(value)
    image = image_of(row.get("image"))
    captions = [text_of(caption, "a caption") for caption in list_of(row, "captions")]
    if not captions or not all(captions):
        raise DataFormatError(f"a caption is missing: found {shown(captions)}.")
    return str(row.get("id", image.as_posix())), image, captions

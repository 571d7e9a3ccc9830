"""The pictures that are searched, and which picture each vector of a feature cache is of. Loads no model.

    <cache>.pictures.jsonl    beside the cache's folder: id, file and first caption of each picture, in the order of the vectors; written by `vlm embed` and `vlm search`

Training names its caches by what they hold and needs no names of pictures; whoever opens a cache by itself does.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned, open_captioned
from vlm.data.feature_cache import FeatureCache
from vlm.data.feature_cache.manifest import KIND
from vlm.data.formats.sources import FILE_SUFFIXES
from vlm.data.manifest import MANIFEST
from vlm.data.own_files import PICTURE_SUFFIXES, TEXT_SUFFIX
from vlm.errors import ConfigError, DataFormatError

NAME_PICTURES = {*FILE_SUFFIXES, ".arrow"}  # files that may say which pictures there are


@dataclass(frozen=True)
class Item:
    """What a search can find.

    Attributes:
        id: The picture's name in its dataset.
        file: Its file.
        caption: Its first caption; empty if it has none.
    """

    id: str
    file: Path
    caption: str = ""


def open_gallery(spec: str, *, data_root: Path, split: str = "") -> Captioned:
    """Pictures with captions as training reads them, or the pictures of a folder without any text, which have no captions.

    Args:
        spec: What `vlm.data.benchmarks.captioned.open_captioned` takes, or a folder of pictures.
        data_root: Folder of the prepared datasets.
        split: Split of a prepared dataset.

    Raises:
        VLMError: If there is no such data.
    """
    folder = Path(spec)
    pictures = _bare_pictures(folder) if folder.is_dir() and not split else []
    if not pictures:
        return open_captioned(spec, data_root=data_root, split=split)
    return Captioned(folder.name, pictures, [], torch.zeros(0, dtype=torch.int64))


def _bare_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder, if it holds pictures and nothing that names them."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(place) / name for name in sorted(names)]
        pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
        of_pictures = {file.stem for file in files if file.suffix.lower() == TEXT_SUFFIX} & {file.stem for file in pictures}  # notes.txt is of none
        if of_pictures or {file.suffix.lower() for file in files} & NAME_PICTURES or MANIFEST in names:
            return []
        found += pictures
    return [Picture(path.relative_to(folder).as_posix(), path) for path in found]


def is_cache(folder: Path) -> bool:
    """Whether a folder holds cached vectors, and not data."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def names_of(cache: Path) -> Path:
    """Where the names of a cache's pictures lie."""
    return cache.with_name(f"{cache.name}.pictures.jsonl")


def items_of(data: Captioned) -> list[Item]:
    """The pictures of some data, each with its first caption."""
    captions: dict[int, str] = {}
    for owner, caption in zip(data.owners.tolist(), data.captions, strict=True):
        captions.setdefault(owner, caption)
    return [Item(picture.id, Path(str(picture.source)), captions.get(number, "")) for number, picture in enumerate(data.pictures)]


def write_names(cache: FeatureCache, items: Sequence[Item]) -> Path:
    """Write which picture each vector is of; under a temporary name first.

    Raises:
        ConfigError: If the file cannot be written.
    """
    path = names_of(cache.folder)
    building = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several ranks may write the same
    try:
        with building.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps({"id": item.id, "file": str(item.file.resolve()), "caption": item.caption}) + "\n")
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Free space there or make it writable.") from error
    finally:
        with suppress(OSError):  # of a folder that cannot be written
            building.unlink(missing_ok=True)
    return path


def read_names(cache: FeatureCache) -> list[Item]:
    """Which picture each vector is of.

    Raises:
        DataFormatError: If nobody has written that, or it is of other vectors.
    """
    path = names_of(cache.folder)
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        items = [Item(row["id"], Path(row["file"]), row["caption"]) for row in rows]
    except FileNotFoundError:
        raise DataFormatError(
            f"{path} is missing: it says which picture each vector in {cache.folder} is of. Run `vlm embed DATA --model M` with the data and the model of "
            "these vectors, which writes it and encodes nothing again; or search the data by its name. Vectors of texts have none."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path} is damaged ({error!r}). Run `vlm embed` with the data and the model of these vectors again.") from None
    if len(items) != len(cache):
        raise DataFormatError(f"{path} names {len(items):,} pictures, and {cache.folder} holds {len(cache):,} vectors. Run `vlm embed` again.")
    return items

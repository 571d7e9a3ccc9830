"""The pictures that are searched, and which picture each vector of a feature cache is of. Loads no model.

    <cache>.pictures.jsonl    beside the cache's folder: id and file of each picture, in the order of the vectors; written by `vlm embed` and `vlm search`

Training names its caches by what they hold and needs no names of pictures; whoever opens a cache by itself does.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned, open_captioned
from vlm.data.feature_cache import FeatureCache
from vlm.data.feature_cache.manifest import KIND
from vlm.data.manifest import MANIFEST
from vlm.data.own_files import PICTURE_SUFFIXES, TEXT_SUFFIX
from vlm.errors import ConfigError, DataFormatError


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
        suffixes = {Path(name).suffix.lower() for name in names}
        if suffixes & {TEXT_SUFFIX, ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"} or MANIFEST in names:
            return []
        found += [Path(place) / name for name in sorted(names) if Path(name).suffix.lower() in PICTURE_SUFFIXES]
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


def write_names(cache: FeatureCache, pictures: Sequence[Picture]) -> Path:
    """Write which picture each vector is of; under a temporary name first.

    Raises:
        ConfigError: If the file cannot be written.
    """
    path = names_of(cache.folder)
    building = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several ranks may write the same
    try:
        with building.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": picture.id, "file": str(Path(str(picture.source)).resolve())}) + "\n" for picture in pictures)
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Free space there or make it writable.") from error
    finally:
        building.unlink(missing_ok=True)
    return path


def read_names(cache: FeatureCache) -> list[Picture]:
    """Which picture each vector is of.

    Raises:
        DataFormatError: If nobody has written that, or it is of other vectors.
    """
    path = names_of(cache.folder)
    try:
        with path.open(encoding="utf-8") as file:
            pictures = [_picture(json.loads(line)) for line in file]
    except FileNotFoundError:
        raise DataFormatError(
            f"{path} is missing: it says which picture each vector in {cache.folder} is of. Run `vlm embed DATA --model M` with the data and the model of "
            "these vectors, which writes it and encodes nothing again; or search the data by its name. Vectors of texts have none."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path} is damaged ({error!r}). Run `vlm embed` with the data and the model of these vectors again.") from None
    if len(pictures) != len(cache):
        raise DataFormatError(f"{path} names {len(pictures):,} pictures, and {cache.folder} holds {len(cache):,} vectors. Run `vlm embed` again.")
    return pictures


def _picture(row: Any) -> Picture:
    return Picture(row["id"], Path(row["file"]))

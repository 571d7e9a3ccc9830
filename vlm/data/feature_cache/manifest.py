"""What lies in the folder of a feature cache, and whose features they are. Knows neither how vectors are made nor how they are read.

    manifest.json         `FeatureManifest`: the key, the shards that stand, mean and deviation
    features-00000.bin    one shard: its vectors row after row, then the sums and the sums of squares of its columns in float64; all little endian
    index.safetensors     `rows`: the vector of each item, where items repeat; `ids` and `ids_order`: names of the items, for look-up

The key holds everything that changes the numbers: encoder, adapters, template, pooling, precision, image policy, dataset. Features of one key are never
taken for those of another.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from vlm.data.manifest import MANIFEST
from vlm.errors import ConfigError, DataFormatError

FORMAT_VERSION = 1
KIND = "features"  # a prepared dataset has a `manifest.json` as well
INDEX = "index.safetensors"
LOCK = ".manifest.lock"
OWN_FILES = re.compile(r"(manifest\.json|index\.safetensors|features-\d+\.bin)(\.tmp)?|\.(manifest|features-\d+\.bin)\.lock")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
REMEDY = "Run the command that wrote it again: it makes only what is missing."
ABSENT = object()


@dataclass(frozen=True)
class Shard:
    """One file of vectors.

    Attributes:
        file: Its name in the folder.
        rows: Vectors that it holds.
        finished: True once the file stands, flushed and verified.
        size: Its bytes.
        sha256: Its hash.
        min_norm: Length of its shortest vector.
        max_norm: Length of its longest vector.
    """

    file: str
    rows: int
    finished: bool = False
    size: int = 0
    sha256: str = ""
    min_norm: float = 0.0
    max_norm: float = 0.0

    def stands(self, folder: Path) -> bool:
        """True if it is finished and its file has the size that it had then."""
        return self.finished and size_of(folder / self.file) == self.size


@dataclass(frozen=True)
class FeatureManifest:
    """What a feature cache holds.

    Attributes:
        key: Everything that changes the numbers, as plain values.
        key_sha256: Hash of the key.
        dtype: How a number is stored: float16, bfloat16 or float32.
        items: Number of items.
        items_sha256: Hash of the items that are text, and of the ids.
        rows: Number of vectors; items that are equal share one.
        shard_rows: Vectors of each shard but the last.
        index_size: Bytes of the index.
        index_sha256: Hash of the index.
        shards: The files of vectors, in order.
        width: Numbers of a vector; 0 until the first shard stands.
        min_norm: Length of the shortest vector, once all shards stand.
        max_norm: Length of the longest vector, once all shards stand.
        mean: Mean of each column over all vectors, once all shards stand.
        std: Standard deviation of each column, once all shards stand.
        kind: Tells this manifest from that of a prepared dataset.
        format_version: Version of this layout.
    """

    key: dict[str, Any]
    key_sha256: str
    dtype: str
    items: int
    items_sha256: str
    rows: int
    shard_rows: int
    index_size: int
    index_sha256: str
    shards: list[Shard]
    width: int = 0
    min_norm: float = 0.0
    max_norm: float = 0.0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    kind: str = KIND
    format_version: int = FORMAT_VERSION

    @property
    def num_finished(self) -> int:
        """Shards that stand."""
        return sum(shard.finished for shard in self.shards)

    @property
    def torch_dtype(self) -> torch.dtype:
        """How a number is stored."""
        return DTYPES[self.dtype]

    def identity(self) -> dict[str, Any]:
        """What a writer must agree with to go on."""
        return self.key | {"dtype on disk": self.dtype, "SHA-256 of the items": self.items_sha256}

    def write(self, folder: Path) -> None:
        """Store as `manifest.json`, a field a line; the file is replaced in one step."""
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(self).items())
        building = folder / f"{MANIFEST}.tmp"
        with building.open("w", encoding="utf-8") as file:
            file.write(f"{{\n{lines}\n}}\n")
            file.flush()
            os.fsync(file.fileno())
        building.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> "FeatureManifest":
        """The manifest of a feature cache.

        Raises:
            DataFormatError: If there is none, or it is damaged, of something else, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("kind") != KIND:
                raise DataFormatError(f"{folder} is not a feature cache: its {MANIFEST} is of something else.")
            if values["format_version"] > FORMAT_VERSION:
                raise DataFormatError(f"{path} has format_version {values['format_version']}; this vlm reads up to {FORMAT_VERSION}. Upgrade vlm.")
            values["shards"] = [Shard(**shard) for shard in values["shards"]]
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except FileNotFoundError:
            raise DataFormatError(f"{folder} is not a feature cache: it has no {MANIFEST}.") from None
        except OSError as error:
            raise DataFormatError(f"{path} cannot be read ({error.strerror}).") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataFormatError(f"{path} is damaged ({error!r}). Write the features again with --overwrite.") from None

    def refuse_other_key(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Raise if the features are those of another key.

        Raises:
            ConfigError: With each value that differs, as it is in the folder and as it is wanted.
        """
        refuse_differences(folder, self.key, plain_key(key))


def plain_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """The key as it reads back from JSON: tuples are lists.

    Raises:
        ConfigError: If it holds anything but text, numbers, lists and mappings with text keys.
    """
    try:
        return json.loads(json.dumps(dict(key), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The key of a feature cache may hold text, numbers, lists and mappings only: {error}.") from None


def key_sha256(key: Mapping[str, Any]) -> str:
    """Hash of a key; the order of its entries does not matter.

    Raises:
        ConfigError: If it holds anything but text, numbers, lists and mappings.
    """
    return hashlib.sha256(json.dumps(plain_key(key), sort_keys=True).encode()).hexdigest()


def refuse_differences(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if two mappings of plain values differ.

    Raises:
        ConfigError: With each value that differs, as it is in the folder and as it is wanted.
    """
    there, here = dict(_flat(found)), dict(_flat(wanted))
    names = [name for name in {**there, **here} if there.get(name, ABSENT) != here.get(name, ABSENT)]
    if names:
        listed = "; ".join(f"{name} is {_shown(there, name)} there, wanted {_shown(here, name)}" for name in names)
        raise ConfigError(f"{folder} holds other features: {listed}. Choose another folder, or add --overwrite to make them again.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"


def size_of(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def refuse_foreign_files(folder: Path) -> None:
    """Raise if a folder holds anything that is not of a feature cache.

    Raises:
        ConfigError: With the first such file.
    """
    foreign = sorted(path.name for path in folder.iterdir() if not OWN_FILES.fullmatch(path.name)) if folder.is_dir() else []
    if foreign:
        raise ConfigError(f"{folder} holds {foreign[0]!r}, which is not of a feature cache. Choose another folder.")


def remove_cache(folder: Path) -> None:
    """Delete a feature cache, finished or not, so that it can be written anew; with several ranks, one of them does it and the others wait.

    Raises:
        ConfigError: If the folder holds anything else; nothing is deleted then.
    """
    refuse_foreign_files(folder)
    try:
        kind = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = KIND  # there is none, or it is damaged: the names of the files speak for it
    if kind != KIND:
        raise ConfigError(f"{folder} is not a feature cache: its {MANIFEST} is of something else. Choose another folder.")
    if folder.exists():
        shutil.rmtree(folder)

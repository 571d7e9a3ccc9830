"""What a prepared folder says of itself: `manifest.json`. Knows its fields and versions, and nothing of how a folder is made.

It holds no time and no path of the machine: the same input gives the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlm.errors import DataFormatError, UnknownNameError

FORMAT_VERSION = 2  # of the prepared folder; version 1 had neither sizes of pictures nor details of dropped rows, and is still read
MANIFEST = "manifest.json"
ADDED_IN_2 = ("archives", "parts", "images_sha256", "verified")


@dataclass(frozen=True)
class SplitFile:
    """The rows of one split.

    Attributes:
        file: Name of the Parquet file in the folder; empty in a mix, whose rows are in its parts.
        rows: Number of rows.
        sha256: Hash of the file; empty in a mix.
        images: Number of different pictures that its rows use; 0 in a folder of format version 1, which did not count them.
        duplicate_ids: Rows whose id an earlier row has.
    """

    file: str
    rows: int
    sha256: str
    images: int = 0
    duplicate_ids: int = 0


@dataclass(frozen=True)
class UsedArchive:
    """A downloaded file that the rows or pictures come from.

    Attributes:
        file: Its name on disk.
        url: Where it is published.
        size: Bytes seen.
        checksum: `sha256:<hex>` as seen, or the published checksum that the file was compared with.
    """

    file: str
    url: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds, and from where.

    Attributes:
        name: Registry name of the dataset, or the name of the user's own data.
        splits: File and number of rows by split; of a mix, the sums over its parts.
        sources: Where the data comes from.
        license: Licence of the data.
        citation: How to cite it.
        options: Settings of the preparation.
        dropped: The rows left out, by split and reason: each with its `id` and, as `detail`, what was wrong with it.
        archives: The downloaded files.
        parts: Of a mix: names of the datasets beside it that are read one after the other.
        images_sha256: Hash over names and sizes of the pictures (`tree_sha256`).
        verified: How pictures were looked at: decode, header or off.
        format_version: Version of this layout.
    """

    name: str
    splits: dict[str, SplitFile]
    sources: list[str]
    license: str
    citation: str
    options: dict[str, Any]
    dropped: dict[str, dict[str, list[dict[str, str]]]]
    archives: list[UsedArchive] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    images_sha256: str = ""
    verified: str = ""
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Store as `manifest.json`; the file is replaced in one step."""
        building = folder / f"{MANIFEST}.tmp"
        building.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        building.replace(folder / MANIFEST)

    def split_of(self, name: str = "") -> SplitFile:
        """The file of a split; without a name of train, or of the only one.

        Raises:
            UnknownNameError: If there is no such split.
        """
        name = name or ("train" if "train" in self.splits or len(self.splits) > 1 else next(iter(self.splits)))
        if name not in self.splits:
            raise UnknownNameError(f"split of the dataset {self.name!r}", name, self.splits)
        return self.splits[name]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a prepared folder, of this format version or an older one.

        Raises:
            DataFormatError: If it is missing, damaged, or of a newer format, or if a file that it names is missing.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] > FORMAT_VERSION:
                raise DataFormatError(f"{path} has format_version {values['format_version']}; this vlm reads up to {FORMAT_VERSION}. Upgrade vlm.")
            manifest = _from_values(values)
        except FileNotFoundError:
            raise DataFormatError(f"{folder} is not a prepared dataset: it has no {MANIFEST}.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataFormatError(f"{path} is damaged ({error!r}). Prepare the dataset again with --overwrite.") from None
        for entry in () if manifest.parts else manifest.splits.values():
            if not (folder / entry.file).is_file():
                raise DataFormatError(f"{folder / entry.file} is missing. Prepare the dataset again with --overwrite.")
        return manifest


def _from_values(values: dict[str, Any]) -> Manifest:
    values["splits"] = {split: SplitFile(**entry) for split, entry in values["splits"].items()}
    if values["format_version"] == 1:
        values["dropped"] = {
            split: {reason: [{"id": name, "detail": ""} for name in names] for reason, names in reasons.items()}
            for split, reasons in values["dropped"].items()
        }
    values["archives"] = [UsedArchive(**entry) for entry in values.get("archives", [])]
    optional = ADDED_IN_2 if values["format_version"] == 1 else ()
    return Manifest(**{item.name: values[item.name] for item in fields(Manifest) if item.name in values or item.name not in optional})


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    """SHA-256 over the sorted names and sizes of all files below a folder; their bytes are not read. Empty if there is no file."""
    files = sorted(files_below(folder))
    hashed = hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in files).encode("utf-8", "surrogateescape"))
    return hashed.hexdigest() if files else ""


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Name below the folder, with slashes, and size in bytes of each file in it; in no order, and nothing if there is no folder."""
    prefix = len(str(folder)) + 1
    for place, _, names in os.walk(folder):
        for entry in names:
            path = os.path.join(place, entry)  # noqa: PTH118  Path objects would take most of the time of a million files
            yield path[prefix:].replace(os.sep, "/"), os.stat(path).st_size  # noqa: PTH116

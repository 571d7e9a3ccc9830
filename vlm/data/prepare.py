"""A dataset's source to its prepared form, `<root>/<name>/{images/, samples-<split>.parquet, manifest.json}`. Knows no single dataset.

The folder is written under a temporary name and renamed in one step: a folder of the final name is always complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlm.data.datasets import DATASETS
from vlm.data.datasets.base import DatasetSpec, Source
from vlm.data.rows import write_parquet
from vlm.data.sample import Dropped, Row, Sample, refuse_faulty
from vlm.errors import ConfigError, DataFormatError

FORMAT_VERSION = 1  # of the prepared folder; raised when an older one must be prepared again
MANIFEST = "manifest.json"

Progress = Callable[[Iterable[Any], str], Iterable[Any]]  # passes items through, and shows how far it is


@dataclass(frozen=True)
class SplitFile:
    """The rows of one split.

    Attributes:
        file: Name of the Parquet file in the folder.
        rows: Number of rows.
        sha256: Hash of the file.
    """

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds, and from where.

    Attributes:
        name: Registry name of the dataset.
        splits: File and number of rows by split.
        sources: Where the data comes from.
        license: Licence of the data.
        citation: How to cite it.
        options: Settings of the preparation.
        dropped: Ids of the rows left out, by split and reason.
        format_version: Version of this layout.
    """

    name: str
    splits: dict[str, SplitFile]
    sources: list[str]
    license: str
    citation: str
    options: dict[str, Any]
    dropped: dict[str, dict[str, list[str]]]
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Store as `manifest.json`."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a prepared folder.

        Raises:
            DataFormatError: If it is missing, damaged, or of a newer format, or if a file that it names is missing.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] > FORMAT_VERSION:
                raise DataFormatError(f"{path} has format_version {values['format_version']}; this vlm reads up to {FORMAT_VERSION}. Upgrade vlm.")
            values["splits"] = {split: SplitFile(**entry) for split, entry in values["splits"].items()}
            manifest = cls(**{field.name: values[field.name] for field in fields(cls)})
        except FileNotFoundError:
            raise DataFormatError(f"{folder} is not a prepared dataset: it has no {MANIFEST}.") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataFormatError(f"{path} is damaged ({error!r}). Prepare the dataset again with --overwrite.") from None
        for entry in manifest.splits.values():
            if not (folder / entry.file).is_file():
                raise DataFormatError(f"{folder / entry.file} is missing. Prepare the dataset again with --overwrite.")
        return manifest


@dataclass(frozen=True)
class Prepared:
    """Result of a preparation.

    Attributes:
        folder: The prepared folder.
        manifest: What it holds.
        fresh: False if it was there before and is what was asked for.
    """

    folder: Path
    manifest: Manifest
    fresh: bool


def prepare(name: str, root: Path, *, options: Any = None, overwrite: bool = False, progress: Progress | None = None) -> Prepared:
    """Prepare a registered dataset, or find it prepared with the same options.

    Args:
        name: Name or alias in `DATASETS`.
        root: Folder of the prepared datasets.
        options: Settings of the preparation, of the dataset's own dataclass; None for its defaults.
        overwrite: Replace what is there.
        progress: Shows how far the rows of a split are.

    Raises:
        UnknownNameError: If there is no such dataset.
        ConfigError: If the folder exists and is something else, or cannot be written.
        DataFormatError: If a split has no usable row.
        MissingPackageError: If a package that ships the data is not installed.
    """
    name = DATASETS.resolve(name)
    spec = DATASETS[name]
    options = spec.options if options is None else options
    folder = root / name
    if folder.exists() and not overwrite:
        return Prepared(folder, _check_same(folder, name, options), fresh=False)
    source = spec.open(options, {})
    building = root / f".{name}.{os.getpid()}.tmp"
    try:
        building.mkdir(parents=True)
        manifest = _build(building, name, spec, source, options, progress or (lambda items, _: items))
        _replace(building, folder)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or folder}"
        raise ConfigError(
            f"Cannot write {folder} ({reason}). Make it writable or free space there, or choose another folder with --root-dir."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Prepared(folder, manifest, fresh=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_same(folder: Path, name: str, options: Any) -> Manifest:
    try:
        manifest = Manifest.read(folder)
    except DataFormatError as error:
        raise ConfigError(f"{folder} exists already and is not usable: {error} Add --overwrite to replace it.") from None
    seen, wanted = (manifest.name, manifest.options, manifest.format_version), (name, asdict(options), FORMAT_VERSION)
    if seen != wanted:
        raise ConfigError(f"{folder} was prepared otherwise: {seen}, wanted {wanted}. Add --overwrite to replace it.")
    return manifest


def _build(folder: Path, name: str, spec: DatasetSpec, source: Source, options: Any, progress: Progress) -> Manifest:
    splits: dict[str, SplitFile] = {}
    dropped: dict[str, dict[str, list[str]]] = {}
    for split in spec.splits:
        dropped[split] = {}
        rows = progress(refuse_faulty(source.rows(split)), f"{name} {split}")
        path = folder / f"samples-{split}.parquet"
        count = write_parquet(_kept(rows, folder, source, dropped[split]), path)
        if not count:
            reasons = "; ".join(f"{len(ids)} {reason}" for reason, ids in dropped[split].items())
            raise DataFormatError(f"Split {split!r} of {name} has no usable row ({reasons or 'the source is empty'}).")
        splits[split] = SplitFile(file=path.name, rows=count, sha256=file_sha256(path))
    manifest = Manifest(name, splits, [spec.source], spec.license, spec.citation, asdict(options), dropped)
    manifest.write(folder)
    return manifest


def _kept(rows: Iterable[Row], folder: Path, source: Source, dropped: dict[str, list[str]]) -> Iterator[Sample]:
    """Rows as samples, their pictures copied below `images/` and their paths relative to the folder; fills `dropped`."""
    for row in rows:
        if isinstance(row, Sample) and not all((file := source.locate(name)) and file.is_file() for name in row.images):
            row = Dropped(row.id, "image file missing in the source")
        if isinstance(row, Dropped):
            dropped.setdefault(row.reason, []).append(row.id)
            continue
        for name in row.images:
            if name.is_absolute() or ".." in name.parts:
                raise DataFormatError(f"The image name {name} of row {row.id!r} leads out of the dataset's folder.")
            file = source.locate(name)
            assert file is not None
            _copy(file, folder / "images" / name)
        yield replace(row, images=tuple(Path("images") / name for name in row.images))


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _replace(building: Path, folder: Path) -> None:
    old = building.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)

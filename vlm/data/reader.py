"""Datasets by name or path, as memory-mapped sequences of samples. Opens no picture and knows no tokenizer.

Rows are unpacked once into an Arrow file in `vlm.assets.cache_dir()`, so that processes share the pages and memory does not grow with the data.
"""

import hashlib
import shlex
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlm.assets import cache_dir, converted
from vlm.data.datasets import DATASETS
from vlm.data.formats.llava import read_llava
from vlm.data.prepare import MANIFEST, Manifest, file_sha256
from vlm.data.rows import parquet_to_arrow, to_sample, write_arrow
from vlm.data.sample import Sample
from vlm.errors import ConfigError, DataFormatError, MissingPackageError, UnknownNameError


@dataclass(frozen=True)
class Part:
    """One opened file of samples.

    Attributes:
        rows: Memory-mapped rows, a `datasets.Dataset`.
        image_root: Folder below which the rows' image paths lie.
        origin: What the user asked for, for messages.
    """

    rows: Any
    image_root: Path
    origin: str


class SampleSet(Sequence[Sample]):
    """The samples of one or several files, one after the other."""

    def __init__(self, parts: Sequence[Part]):
        """Join opened files.

        Args:
            parts: Files in order.

        Raises:
            DataFormatError: If a file has no row.
        """
        for part in parts:
            if not len(part.rows):
                raise DataFormatError(
                    f"The dataset {part.origin!r} is empty: it has no conversation. Check the file, or prepare it again with --overwrite."
                )
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part.rows) for part in parts))

    def __len__(self) -> int:
        """Number of samples."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """One sample, with absolute or root-relative image paths."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        index %= len(self)
        i = bisect_right(self._ends, index)
        part = self.parts[i]
        return to_sample(part.rows[index - (self._ends[i] - len(part.rows))], image_root=part.image_root)


def open_dataset(spec: str, *, data_root: Path) -> SampleSet:
    """Open what `--stage.dataset` names.

    Args:
        spec: A prepared dataset by name (`easy-vqa`, `easy-vqa@test`; without a split: train, or the only one), the path of a prepared folder,
            the path of a LLaVA-style .json or .jsonl file (its image paths are relative to its folder), or several of these with commas.
        data_root: Folder of the prepared datasets.

    Raises:
        UnknownNameError: If nothing is prepared or registered under a name, or a split does not exist.
        ConfigError: If a registered dataset is not prepared yet; the command that prepares it is given.
        DataFormatError: If a file cannot be read, or is empty.
        MissingPackageError: If `datasets` is not installed.
    """
    names = [name.strip() for name in spec.split(",") if name.strip()]
    if not names:
        raise ConfigError("No dataset is named. Set --stage.dataset to a prepared dataset or a file.")
    return SampleSet([_open(name, data_root) for name in names])


def _open(name: str, data_root: Path) -> Part:
    if Path(name).suffix in {".json", ".jsonl"}:
        return _open_llava(Path(name))
    base, _, split = name.partition("@") if not Path(name).is_dir() else (name, "", "")
    if "/" in base:
        return _open_prepared(Path(base), split, origin=name)
    folder = _find_prepared(base, data_root)
    return _open_prepared(folder, split, origin=name)


def _find_prepared(name: str, data_root: Path) -> Path:
    if (data_root / name / MANIFEST).is_file():
        return data_root / name
    prepared = [path.parent.name for path in data_root.glob(f"*/{MANIFEST}")]
    try:
        registered = DATASETS.resolve(name)
    except UnknownNameError as error:
        raise UnknownNameError("dataset", name, {*error.known, *prepared}) from None
    if (data_root / registered / MANIFEST).is_file():
        return data_root / registered
    line = f"vlm preprocess --dataset-id {registered} --root-dir {shlex.quote(str(data_root))}"
    raise ConfigError(f"The dataset {name!r} is not prepared below {data_root}. Run: {line}")


def _open_prepared(folder: Path, split: str, *, origin: str) -> Part:
    manifest = Manifest.read(folder)
    if not split:
        split = "train" if "train" in manifest.splits or len(manifest.splits) > 1 else next(iter(manifest.splits))
    if split not in manifest.splits:
        raise UnknownNameError(f"split of the dataset {manifest.name!r}", split, manifest.splits)
    entry = manifest.splits[split]
    path = folder / entry.file

    def unpack(target: Path) -> None:
        seen = file_sha256(path)
        if seen != entry.sha256:
            raise DataFormatError(f"{path} has SHA-256 {seen}, its manifest says {entry.sha256}. Prepare the dataset again with --overwrite.")
        parquet_to_arrow(path, target)

    return Part(_mapped(path, entry.sha256, unpack), folder, origin)


def _open_llava(path: Path) -> Part:
    if not path.is_file():
        raise DataFormatError(f"There is no file {path}.")
    return Part(_mapped(path, "", lambda target: write_arrow(read_llava(path), target)), path.parent, str(path))


def _mapped(path: Path, salt: str, write: Callable[[Path], None]) -> Any:
    """The rows of a file from its Arrow copy in the cache, written first if the file is new or has changed."""
    try:
        import datasets
    except ImportError:
        raise MissingPackageError("datasets", needed_for="Reading datasets", extra="data") from None
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{salt}".encode()).hexdigest()[:24]
    try:
        folder = converted(f"samples-{key}", lambda building: write(building / "rows.arrow"))
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {cache_dir()} ({error}). Make it writable or free space there, or set VLM_CACHE to another folder."
        ) from error
    return datasets.Dataset.from_file(str(folder / "rows.arrow"))

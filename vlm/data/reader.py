"""Datasets by name or path, as memory-mapped sequences of samples. Opens no picture and knows no tokenizer.

Rows are unpacked once into an Arrow file in `vlm.assets.cache_dir()`, so that processes share the pages and memory does not grow with the data.
"""

import hashlib
import json
import logging
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from vlm.assets import cache_dir, converted
from vlm.data.datasets import DATASETS
from vlm.data.formats.sources import FILE_SUFFIXES
from vlm.data.manifest import MANIFEST, Manifest, file_sha256
from vlm.data.own_files import own_rows
from vlm.data.rows import parquet_to_arrow, to_sample, write_arrow
from vlm.data.sample import Dropped, Row, Sample, refuse_faulty
from vlm.data.stream.mixture import Entry, parse_mixture
from vlm.errors import ConfigError, DataFormatError, MissingPackageError, UnknownNameError

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
SKIP = "`vlm preprocess --dataset-id {} --on-bad-row skip` first; where a model that answers is trained, --stage.on-bad-row skip does it too"
FORMAT = 2  # of the Arrow copies in the cache; raised when their columns change


@dataclass(frozen=True)
class Part:
    """One opened file of samples.

    Attributes:
        rows: Memory-mapped rows, a `datasets.Dataset`.
        image_root: Folder below which the rows' image paths lie.
        origin: What the user asked for, for messages.
        home: Folder beside the data, for what is derived from it.
        key: Name of exactly these rows, for files in `home`.
    """

    rows: Any
    image_root: Path
    origin: str
    home: Path
    key: str


class SampleSet(Sequence[Sample]):
    """The samples of one or several files, one after the other."""

    def __init__(self, parts: Sequence[Part], *, entries: Sequence[Entry] = (), entry_of_part: Sequence[int] = ()):
        """Join opened files.

        Args:
            parts: Files in order.
            entries: The sources that the user named, in order; one for all parts if none is given.
            entry_of_part: Which source each part belongs to, ascending: a mix is one source of several files.

        Raises:
            DataFormatError: If a file has no row.
        """
        for part in parts:
            if not len(part.rows):
                raise DataFormatError(
                    f"The dataset {part.origin!r} is empty: it has no conversation. Check the file, or prepare it again with --overwrite."
                )
        self.parts = tuple(parts)
        self.entries = tuple(entries) or (Entry(parts[0].origin, passes=1.0),)
        self._ends = list(accumulate(len(part.rows) for part in parts))
        self._entry_of_part = tuple(entry_of_part) or (0,) * len(self.parts)

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

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each source."""
        sizes = [0] * len(self.entries)
        for part, entry in zip(self.parts, self._entry_of_part, strict=True):
            sizes[entry] += len(part.rows)
        return tuple(sizes)

    def source_of(self, index: int) -> int:
        """Number of the source that a sample is from."""
        return self._entry_of_part[bisect_right(self._ends, index)]


def open_dataset(spec: str, *, data_root: Path, on_bad_row: OnBadRow = "error") -> SampleSet:
    """Open what `--stage.dataset` names.

    Args:
        spec: A prepared dataset by name (`easy-vqa`, `easy-vqa@test`; without a split: train, or the only one), the path of a prepared folder,
            the path of the user's own data in any form of `vlm.data.own_files`, or several of these with commas and amounts (`vlm.data.stream.mixture`).
        data_root: Folder of the prepared datasets.
        on_bad_row: error: the first faulty row of the user's own data is an error; skip: such rows are left out and counted.

    Raises:
        UnknownNameError: If nothing is prepared or registered under a name, or a split does not exist.
        ConfigError: If a registered dataset is not prepared yet; the command that prepares it is given.
        DataFormatError: If a file cannot be read, or is empty.
        MissingPackageError: If `datasets` is not installed.
    """
    entries = parse_mixture(spec)
    parts = [_open(entry.name, data_root, on_bad_row) for entry in entries]
    entry_of_part = [i for i, opened in enumerate(parts) for _ in opened]
    return SampleSet([part for opened in parts for part in opened], entries=entries, entry_of_part=entry_of_part)


def _open(name: str, data_root: Path, on_bad_row: OnBadRow) -> list[Part]:
    path, split = _locate(name, data_root)
    if not path.exists():
        raise DataFormatError(f"There is no file or folder {path}.")
    if not (path / MANIFEST).is_file():
        if split:
            raise ConfigError(f"{path} is data of your own, which has no split {split!r}. Give a file or folder of its own for each split.")
        return [_open_own(path, on_bad_row)]
    manifest = Manifest.read(path)
    if manifest.parts:
        at = f"@{split}" if split else ""
        return [part for member in manifest.parts for part in _open(f"{path.parent / member}{at}", data_root, on_bad_row)]
    return [_open_prepared(path, manifest, split, origin=name)]


def _locate(name: str, data_root: Path) -> tuple[Path, str]:
    """Where a dataset lies, and the split that is wanted; empty for the default one. A prepared dataset goes before a file or folder of the same name."""
    base, _, split = name.partition("@")
    if (data_root / base / MANIFEST).is_file() and "/" not in base:
        return data_root / base, split
    if Path(name).exists():
        return Path(name), ""
    if "/" in base or Path(base).suffix in FILE_SUFFIXES or Path(base).exists():
        return Path(base), split
    return _find_prepared(base, data_root), split


def _find_prepared(name: str, data_root: Path) -> Path:
    prepared = [path.parent.name for path in data_root.glob(f"*/{MANIFEST}")]
    try:
        registered = DATASETS.resolve(name)
    except UnknownNameError as error:
        raise UnknownNameError("dataset", name, {*error.known, *prepared}) from None
    if (data_root / registered / MANIFEST).is_file():
        return data_root / registered
    line = f"vlm preprocess --dataset-id {registered} --root-dir {shlex.quote(str(data_root))}"
    raise ConfigError(f"The dataset {name!r} is not prepared below {data_root}. Run: {line}")


def _open_prepared(folder: Path, manifest: Manifest, split: str, *, origin: str) -> Part:
    entry = manifest.split_of(split)
    path = folder / entry.file

    def unpack(building: Path) -> None:
        seen = file_sha256(path)
        if seen != entry.sha256:
            raise DataFormatError(f"{path} has SHA-256 {seen}, its manifest says {entry.sha256}. Prepare the dataset again with --overwrite.")
        parquet_to_arrow(path, building / "rows.arrow")

    rows, _ = _mapped(_key(path, entry.sha256), unpack)
    return Part(rows, folder, origin, home=folder, key=entry.sha256[:24])


def _open_own(path: Path, on_bad_row: OnBadRow) -> Part:
    key = _key(path, on_bad_row)
    pictures = cache_dir() / f"pictures-{key}"

    def unpack(building: Path) -> None:
        files = own_rows(path, pictures=pictures)
        dropped: list[Dropped] = []
        write_arrow(
            _kept(files.rows if on_bad_row == "skip" else refuse_faulty(files.rows, skip=SKIP.format(shlex.quote(str(path)))), dropped),
            building / "rows.arrow",
        )
        reasons = {reason: [row.id for row in dropped if row.reason == reason] for reason in {row.reason for row in dropped}}
        facts = {"image_root": str(files.image_root.resolve()), "dropped": reasons}
        (building / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    rows, folder = _mapped(key, unpack)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    for reason, ids in facts["dropped"].items():
        log.warning("warning: %s: %d row(s) left out: %s (%s)", path, len(ids), reason, ", ".join(ids[:5]))
    return Part(rows, Path(facts["image_root"]), str(path), home=folder, key=key)


def _kept(rows: Iterable[Row], dropped: list[Dropped]) -> Iterator[Sample]:
    for row in rows:
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            yield row


def _key(path: Path, salt: str) -> str:
    """Name of a file or folder in its present state: sizes and times of all files."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256(f"{FORMAT}|{path.resolve()}|{salt}".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _mapped(key: str, write: Callable[[Path], None]) -> tuple[Any, Path]:
    """The rows in an Arrow copy in the cache, written first if the data is new or has changed; and the folder of the copy."""
    try:
        import datasets
    except ImportError:
        raise MissingPackageError("datasets", needed_for="Reading datasets", extra="data") from None
    try:
        folder = converted(f"samples-{key}", write)
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {cache_dir()} ({error}). Make it writable or free space there, or set VLM_CACHE to another folder."
        ) from error
    return datasets.Dataset.from_file(str(folder / "rows.arrow")), folder

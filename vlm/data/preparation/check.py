"""Prepared folders and the user's own data looked through for what would spoil a training: errors, warnings, and how long texts are.

Knows rows and pictures, no tokenizer and no model. Finds everything before it says anything: one bad row does not hide the next.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlm.data.manifest import MANIFEST, Manifest, SplitFile, file_sha256, files_below, tree_sha256
from vlm.data.preparation.folder_builder import IMAGES
from vlm.data.preparation.readable import readable
from vlm.data.preparation.verify_pictures import PictureChecker, Verdict, Verify, look_ahead
from vlm.data.rows import read_parquet, to_sample
from vlm.data.sample import Dropped, Row, Sample, check_turns
from vlm.errors import DataFormatError

TINY = 8  # pixels of a side: less than a patch of any vision backbone here
EXTREME_ASPECT_RATIO = 10  # long to short side: squeezed tenfold, or nine tenths padding, in a square tile
EXAMPLES = 5  # of each finding

Level = Literal["error", "warning"]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass
class Finding:
    """What is wrong, how often, and where for example.

    Attributes:
        level: error (training will fail, or learn what nobody meant) or warning (worth a look).
        kind: What it is, in few words.
        count: How often.
        examples: The first of them.
    """

    level: Level
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """A whole number over all samples."""

    min: int
    median: int
    mean: float
    p99: int
    max: int

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> "Spread":
        """From how often each value is there; at least one is."""
        total = sum(counts.values())
        mean = sum(value * count for value, count in counts.items()) / total
        return cls(min(counts), _quantile(counts, 0.5), round(mean, 2), _quantile(counts, 0.99), max(counts))


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers.

    Attributes:
        rows: Usable samples.
        images: Different picture files that they use.
        spreads: By what was counted: characters, turns, images.
    """

    rows: int
    images: int
    spreads: dict[str, Spread]


@dataclass(frozen=True)
class Report:
    """What was found in one folder or file.

    Attributes:
        name: Name of the dataset.
        path: Where it is.
        splits: Numbers by split.
        findings: Errors first.
    """

    name: str
    path: str
    splits: dict[str, SplitReport]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """True if there is no error; there may be warnings."""
        return not any(finding.level == "error" for finding in self.findings)


@readable()
def check(path: Path, *, verify: Verify = "decode", workers: int | None = None, progress: Progress | None = None) -> list[Report]:
    """Look through a prepared folder, the parts of a mix, or the user's own data.

    Args:
        path: A prepared folder, or a file or folder that `vlm.data.own_files` reads.
        verify: How pictures are looked at; their bytes are hashed in any case.
        workers: Processes that look at pictures; None: one for each CPU.
        progress: Shows how far the rows of a split are.

    Raises:
        DataFormatError: If there is nothing that can be read as data.
        ConfigError: If a file or folder cannot be opened, there is less than one worker, or one dies.
    """
    if not path.exists():
        raise DataFormatError(f"There is no file or folder {path}.")
    show = progress or (lambda items, _: items)
    if not (path / MANIFEST).is_file():
        with _inspection(verify, workers) as inspection, tempfile.TemporaryDirectory() as embedded:
            return [_check_own(path, Path(embedded), inspection, show)]
    manifest = Manifest.read(path)
    if manifest.parts:
        return [report for part in manifest.parts for report in check(path.parent / part, verify=verify, workers=workers, progress=progress)]
    with _inspection(verify, workers) as inspection:
        return [_check_prepared(path, manifest, inspection, show)]


def _check_own(path: Path, embedded: Path, inspection: "_Inspection", progress: Progress) -> Report:
    from vlm.data.own_files import own_rows

    own = own_rows(path, pictures=embedded)
    inspection.image_root = own.image_root
    return Report(path.name, str(path), {"train": inspection.inspect(progress(own.rows, path.name), path.name)}, inspection.sorted_findings())


def _check_prepared(folder: Path, manifest: Manifest, inspection: "_Inspection", progress: Progress) -> Report:
    inspection.image_root = folder
    splits = {}
    for split, entry in manifest.splits.items():
        if file_sha256(folder / entry.file) != entry.sha256:
            inspection.note("error", "rows are not those of the manifest", f"{entry.file} has another SHA-256")
        rows = _stored_rows(folder, entry, inspection)
        splits[split] = inspection.inspect(progress(rows, f"{manifest.name} {split}"), split)
    used = inspection.verdicts.keys()
    for name, _ in sorted(files_below(folder / IMAGES)):
        if f"{IMAGES}/{name}" not in used:
            inspection.note("warning", "file that no row uses", f"{IMAGES}/{name}")
    if manifest.images_sha256 and tree_sha256(folder / IMAGES) != manifest.images_sha256:
        inspection.note("warning", "pictures are not those of the manifest", f"names or sizes below {IMAGES}/ have changed")
    return Report(manifest.name, str(folder), splits, inspection.sorted_findings())


def _stored_rows(folder: Path, entry: SplitFile, inspection: "_Inspection") -> Iterator[Row]:
    """The rows of a Parquet file; those that are no samples as dropped ones, and what cannot be read at all as a finding."""
    number = 0
    try:
        for number, row in enumerate(read_parquet(folder / entry.file), start=1):
            try:
                yield to_sample(row, image_root=Path())
            except (DataFormatError, TypeError, ValueError) as error:
                reason = "placeholders and images differ" if row["messages"] else "no messages"
                yield Dropped(str(row["id"]), reason, str(error), where=f"{entry.file}, row {number}")
    except DataFormatError as error:
        inspection.note("error", "rows cannot be read", str(error))
        return
    if number != entry.rows:
        inspection.note("error", "number of rows is not that of the manifest", f"{entry.file} has {number}, the manifest says {entry.rows}")


@contextmanager
def _inspection(verify: Verify, workers: int | None) -> Iterator["_Inspection"]:
    with PictureChecker(verify=verify, workers=workers, digest=True) as checker:
        yield _Inspection(checker)


class _Inspection:
    """The findings of one folder, and what must be remembered to find duplicates."""

    def __init__(self, checker: PictureChecker):
        self.image_root = Path()
        self.verdicts: dict[str, Verdict] = {}
        self._checker = checker
        self._findings: dict[tuple[Level, str], Finding] = {}
        self._first_picture: dict[bytes, str] = {}  # by the hash of its bytes
        self._judged: set[str] = set()

    def note(self, level: Level, kind: str, example: str) -> None:
        """Count a finding."""
        finding = self._findings.setdefault((level, kind), Finding(level, kind))
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example)

    def sorted_findings(self) -> list[Finding]:
        """Errors first, each level by how often."""
        return sorted(self._findings.values(), key=lambda finding: (finding.level, -finding.count, finding.kind))

    def inspect(self, rows: Iterable[Row], split: str) -> SplitReport:
        """Look at all rows of a split."""
        first_row: dict[bytes, str] = {}
        ids: set[str] = set()
        images: set[str] = set()
        counts: dict[str, Counter[int]] = {name: Counter() for name in ("characters", "turns", "images")}
        usable = 0
        for row in look_ahead(rows, files=self._files, checker=self._checker, verdicts=self.verdicts):
            if isinstance(row, Dropped):
                self.note("error" if row.where else "warning", row.reason, f"{row.where or row.id}: {row.detail or row.reason}")
                continue
            usable += 1
            if row.id in ids:
                self.note("warning", "id of another row", f"{split}: {row.id}")
            ids.add(row.id)
            images.update(name.as_posix() for name in row.images)
            self._judge(row, split)
            content = self._content(row)
            if content in first_row:
                self.note("warning", "row that is the same as another", f"{split}: {row.id}, as {first_row[content]}")
            first_row.setdefault(content, row.id)
            counts["characters"][sum(len(message.text) for message in row.messages)] += 1
            counts["turns"][len(row.messages)] += 1
            counts["images"][len(row.images)] += 1
        return SplitReport(usable, len(images), {name: Spread.of(counted) for name, counted in counts.items() if counted})

    def _files(self, row: Row) -> dict[str, Path | None]:
        return {name.as_posix(): self.image_root / name for name in row.images} if isinstance(row, Sample) else {}

    def _judge(self, sample: Sample, split: str) -> None:
        """Turns and pictures of one sample; each picture once."""
        try:
            check_turns(sample.messages)
        except DataFormatError as error:
            self.note("error", str(error).partition(":")[0], f"{split}: {sample.id}: {error}")
        for i, image in enumerate(sample.images):
            name, verdict = image.as_posix(), self.verdicts[image.as_posix()]
            if sample.sizes and verdict.size and sample.sizes[i] != verdict.size:
                self.note(
                    "error", "picture of another size than its row says", f"{name} is {_size(verdict.size)}, {_size(sample.sizes[i])} in {sample.id}"
                )
            if name not in self._judged:
                self._judged.add(name)
                self._judge_picture(name, verdict, first=f"{split}: {sample.id}")

    def _judge_picture(self, name: str, verdict: Verdict, *, first: str) -> None:
        """One picture, whose first row is `first`."""
        if verdict.reason:
            self.note("error", verdict.reason, f"{first}: {verdict.detail}")
            return
        same = self._first_picture.setdefault(verdict.digest, name)
        if same != name:
            self.note("warning", "picture file with the same bytes as another", f"{name}, as {same}")
        if verdict.size is None:
            return
        short, long = sorted(verdict.size)
        if short < TINY:
            self.note("warning", f"picture of less than {TINY} pixels", f"{name} is {_size(verdict.size)}")
        if long > EXTREME_ASPECT_RATIO * short:
            self.note("warning", f"picture longer than {EXTREME_ASPECT_RATIO} times its width or height", f"{name} is {_size(verdict.size)}")

    def _content(self, sample: Sample) -> bytes:
        """Hash of texts and of the pictures' bytes."""
        pictures = [self.verdicts[name.as_posix()].digest.hex() or name.as_posix() for name in sample.images]
        texts = [(message.role, message.text) for message in sample.messages]
        return hashlib.sha256(repr((pictures, texts)).encode()).digest()


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that at least this share of all values does not exceed."""
    wanted, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return max(counts)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} pixels"

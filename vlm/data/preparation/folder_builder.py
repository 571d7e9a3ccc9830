"""Rows of a source to the files of a prepared folder: pictures below `images/`, samples as Parquet. Knows no archive, no manifest and no single dataset.

Rows come and go in blocks, so memory does not grow with them, but for the names of the pictures and what is known of each.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from vlm.data.manifest import SplitFile, file_sha256
from vlm.data.preparation.verify_pictures import PictureChecker, Verdict, look_ahead
from vlm.data.rows import count_distinct, write_parquet
from vlm.data.sample import Dropped, Row, Sample, refuse_faulty
from vlm.errors import DataFormatError

OnBadRow = Literal["error", "skip"]
DroppedRows = dict[str, list[dict[str, str]]]  # by reason, as the manifest has them

IMAGES = "images"
REMEMBERED = 2**13  # names: those of the blocks of rows that are under way are asked for three times each


class FolderBuilder:
    """A prepared folder in the making."""

    def __init__(self, folder: Path, *, locate: Callable[[Path], Path | None], checker: PictureChecker, linkable: Sequence[Path] = ()):
        """Begin with an empty folder.

        Args:
            folder: Where the files go.
            locate: The file of the source behind a picture's name, or None.
            checker: Looks at the pictures; stays open as long as rows are written.
            linkable: Folders whose files nobody else changes, so that a hard link does instead of a copy.
        """
        self.folder, self._locate, self._checker, self._linkable = folder, locate, checker, [linked.absolute() for linked in linkable]
        self._verdicts: dict[str, Verdict] = {}

    def write_split(self, split: str, rows: Iterable[Row], *, where: str, on_bad_row: OnBadRow) -> tuple[SplitFile, DroppedRows]:
        """Write the usable rows of a split with their pictures, in their order.

        Args:
            split: Name of the split.
            rows: The rows of the source.
            where: What the rows are of, for messages: "my.json".
            on_bad_row: error: the first faulty row is an error; skip: faulty rows are dropped.

        Returns:
            What was written, and what was not.

        Raises:
            DataFormatError: If a row is faulty and shall not be skipped, or if no row is usable.
        """
        dropped: DroppedRows = {}
        judged = self._judged(rows, where)
        path = self.folder / f"samples-{split}.parquet"
        count = write_parquet(self._kept(refuse_faulty(judged) if on_bad_row == "error" else judged, dropped), path)
        if not count:
            reasons = "; ".join(f"{len(left_out)} {reason}" for reason, left_out in dropped.items())
            raise DataFormatError(f"Split {split!r} of {where} has no usable row ({reasons or 'the source is empty'}).")
        distinct = count_distinct(path)
        return SplitFile(path.name, count, file_sha256(path), images=distinct.images, duplicate_ids=count - distinct.ids), dropped

    def _judged(self, rows: Iterable[Row], where: str) -> Iterator[Row]:
        """Rows with the sizes of their pictures, or dropped for them."""
        for number, row in look_ahead(enumerate(rows, start=1), files=self._files, checker=self._checker, verdicts=self._verdicts):
            yield self._judge(row, f"{where}, row {number}")

    def _files(self, item: tuple[int, Row]) -> dict[str, Path | None]:
        _, row = item
        return {name.as_posix(): self._locate(name) for name in row.images if is_safe(name)} if isinstance(row, Sample) else {}

    def _judge(self, row: Row, where: str) -> Row:
        if isinstance(row, Dropped):
            return row
        if not _is_unicode(row):
            return Dropped(row.id, "text is no Unicode", "A text holds half of a surrogate pair, which is no character and cannot be stored.", where)
        sizes: list[tuple[int, int]] = []
        for name in row.images:
            if not is_safe(name):
                return Dropped(
                    row.id, "image name leads out of the folder", f"The image name {str(name)!r} leads out of the dataset's folder.", where
                )
            verdict = self._verdicts[name.as_posix()]
            if verdict.reason:
                return Dropped(row.id, verdict.reason, verdict.detail, where)
            sizes += [verdict.size] if verdict.size else []
        return replace(row, sizes=tuple(sizes))

    def _kept(self, rows: Iterable[Row], dropped: DroppedRows) -> Iterator[Sample]:
        """The samples, their pictures placed below `images/` and named relative to the folder; fills `dropped`."""
        for row in rows:
            if isinstance(row, Dropped):
                dropped.setdefault(row.reason, []).append({"id": _printable(row.id), "detail": _printable(row.detail)})
                continue
            for name in row.images:
                self._place(name)
            yield replace(row, images=tuple(Path(IMAGES) / name for name in row.images))

    def _place(self, name: Path) -> None:
        target = self.folder / IMAGES / name
        if target.exists():
            return
        source = self._locate(name)
        assert source is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        if any(source.absolute().is_relative_to(folder) for folder in self._linkable):
            try:
                os.link(source, target)
                return
            except OSError:  # a file system without links, or a file with too many
                pass
        shutil.copyfile(source, target)


@lru_cache(maxsize=REMEMBERED)
def is_safe(name: Path) -> bool:
    """True if a picture's name stays below the folder that it is put into, on every system."""
    posix, windows = PurePosixPath(name.as_posix()), PureWindowsPath(name.as_posix())
    return posix.name != "" and not (posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts)


def _is_unicode(sample: Sample) -> bool:
    try:
        for text in (sample.id, *(message.text for message in sample.messages), *map(str, sample.images)):
            text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    """The text with what UTF-8 cannot hold written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

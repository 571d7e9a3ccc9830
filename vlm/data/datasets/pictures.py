"""The files behind the names that a dataset gives its pictures, in the folders that archives were extracted to. Knows no dataset."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vlm.data.datasets.base import Archive
from vlm.data.sample import Dropped, Row

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})  # of files that the loader opens


@dataclass(frozen=True)
class PicturePlace:
    """Where the pictures of one prefix come from.

    Attributes:
        prefix: What their names begin with, such as `coco/train2017`; empty for all names.
        archive: The archive that has them.
        inside: The folder of the archive that the prefix stands for. Pictures that lie elsewhere in it are found as well, only slower.
    """

    prefix: str
    archive: Archive
    inside: str = ""


class Pictures:
    """The pictures of a dataset.

    Some lists name `x.jpg` where the archive has `x.gif` or `x.png` (OCR-VQA): the picture of that stem is then the one meant.
    """

    def __init__(self, found_in: Sequence[PicturePlace], places: Mapping[str, Path]):
        """Remember the folders; none is read yet.

        Args:
            found_in: Where which names come from; several places may have the same prefix.
            places: Extracted folders by the `file` of their archive.
        """
        self._folders: dict[str, list[_Folder]] = {}
        for place in found_in:
            folder = _Folder(places[place.archive.file], place.inside)
            self._folders.setdefault(f"{place.prefix}/" if place.prefix else "", []).append(folder)

    def locate(self, name: Path) -> Path | None:
        """The file of a picture, or None if no archive has it."""
        text = name.as_posix()
        if name.is_absolute() or ".." in name.parts:
            return None
        for prefix, folders in self._folders.items():
            if text.startswith(prefix):
                rest = PurePosixPath(text.removeprefix(prefix))
                return next((file for folder in folders if (file := folder.plain(rest))), None) or next(
                    (file for folder in folders if (file := folder.search(rest))), None
                )
        return None

    def with_real_suffixes(self, row: Row) -> Row:
        """The row with the suffixes that its pictures have in the archives; missing pictures keep their names."""
        if isinstance(row, Dropped) or not row.images:
            return row
        files = [self.locate(name) for name in row.images]
        names = tuple(name.with_suffix(file.suffix) if file else name for name, file in zip(row.images, files, strict=True))
        return row if names == row.images else replace(row, images=names)


class _Folder:
    """One extracted archive; listed once, at the first picture that is not where it should be."""

    def __init__(self, root: Path, inside: str):
        self.root, self.inside = root, inside
        self._by_stem: dict[str, list[str]] | None = None

    def plain(self, name: PurePosixPath) -> Path | None:
        """The file where the publisher has it."""
        file = self.root / self.inside / name
        try:
            return file if file.is_file() else None
        except OSError:  # a name that is too long for the file system
            return None

    def search(self, name: PurePosixPath) -> Path | None:
        """The one file anywhere in the archive whose path ends with the name, or else with the name and another suffix of pictures."""
        if self._by_stem is None:
            self._by_stem = self._list()
        found = [PurePosixPath(path) for path in self._by_stem.get(name.stem, ())]
        found = [path for path in found if path.parent.parts[len(path.parent.parts) - len(name.parent.parts) :] == name.parent.parts]
        same = [path for path in found if path.name == name.name] or found
        return self.root / same[0] if len(same) == 1 else None  # of two pictures, which one is meant is nobody's guess

    def _list(self) -> dict[str, list[str]]:
        by_stem: dict[str, list[str]] = {}
        for folder, _, files in os.walk(self.root):
            for file in files:
                path = Path(folder, file)
                if path.suffix.lower() in SUFFIXES:
                    by_stem.setdefault(path.stem, []).append(path.relative_to(self.root).as_posix())
        return by_stem

"""The archives that datasets are made of, in `<root>/.archives`: what is still to be downloaded, where it lies unpacked, what can be deleted again.

Datasets that name the same archive share it. `vlm.data.archives.download` gets files and `vlm.data.archives.extract` unpacks them; this file knows neither HTTP nor zip.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from vlm.data.archives.meter import Meter
from vlm.data.datasets.base import Archive
from vlm.data.manifest import UsedArchive, file_sha256

FOLDER = ".archives"
EXTRACTED = ".files"  # ends the name of the folder that an archive was extracted to
TEMPORARY = ".temporary"  # ends the name of a mark: what it names was made by a preparation, and goes with one


@dataclass(frozen=True)
class Places:
    """Where archives are.

    Attributes:
        opened: By the archive's `file`, the folder that it was extracted to, or the file itself.
        used: What the files were, for the manifest.
    """

    opened: Mapping[str, Path]
    used: list[UsedArchive]


@dataclass(frozen=True)
class Needs:
    """What a preparation takes before it can begin.

    Attributes:
        downloads: The archives that are not there.
        extractions: The archives that are not yet extracted.
        download_bytes: Their size, as far as it is stated; what an interrupted download left counts as done.
        disk_bytes: The same, and what comes out of all archives that are not yet extracted.
        disk_unknown: Whether nobody states the size of some of them, so that it will be more.
    """

    downloads: tuple[Archive, ...] = ()
    extractions: tuple[Archive, ...] = ()
    download_bytes: int = 0
    disk_bytes: int = 0
    disk_unknown: bool = False

    def __bool__(self) -> bool:
        """False if there is nothing to download and nothing to extract."""
        return bool(self.downloads or self.extractions)


@dataclass(frozen=True)
class ArchiveStore:
    """The archives below one root.

    Attributes:
        root: Folder of the prepared datasets.
        mirror: URL or folder that has the archives under their `file` names; empty for the published places.
        from_archives: Folder in which the user has the archives; nothing is downloaded, and nothing in it is changed.
        keep: Whether what was downloaded and extracted stays.
    """

    root: Path
    mirror: str = ""
    from_archives: Path | None = None
    keep: bool = False

    @property
    def folder(self) -> Path:
        """Where downloads and what was extracted from them lie."""
        return self.root / FOLDER

    def needs(self, archives: Sequence[Archive]) -> Needs:
        """What is still to be downloaded and extracted."""
        if not archives:
            return Needs()
        from vlm.data.archives.extract import is_archive
        from vlm.data.archives.transfer import part_size

        missing = () if self.from_archives else tuple(archive for archive in archives if not (self.folder / archive.file).is_file())
        download = sum(max(0, archive.size - part_size(self.folder / archive.file)) for archive in missing)
        packed = tuple(archive for archive in archives if is_archive(archive.file) and not (self.folder / f"{archive.file}{EXTRACTED}.done").exists())
        untouched = [archive for archive in packed if not self._extracted(archive.file).exists()]  # one that was begun checks what it still needs
        unpacked = [archive.unpacked or archive.size for archive in untouched]
        unknown = not all((*unpacked, *(archive.size for archive in missing)))
        return Needs(missing, packed, download, download + sum(unpacked), unknown)

    def open(self, archives: Sequence[Archive], *, meter: Meter | None = None) -> Places:
        """Fetch and extract archives, as far as that was not done before.

        Args:
            archives: What is needed.
            meter: Shows how far it is, if one is given.

        Raises:
            ConfigError: If an archive cannot be had, or the disk is too small.
            DataFormatError: If an archive is not what it should be.
        """
        if not archives:
            return Places({}, [])
        from vlm.data.archives.download import check_space, fetch
        from vlm.data.archives.extract import extract, is_archive

        self.folder.mkdir(parents=True, exist_ok=True)
        check_space(self.folder, needed=self.needs(archives).disk_bytes)
        before = {archive.file for archive in archives if (self.folder / archive.file).exists()}

        def downloaded(name: str) -> None:
            self._mark(name, made_now=name not in before)

        fetched = fetch(archives, self.folder, mirror=self.mirror, from_archives=self.from_archives, meter=meter, downloaded=downloaded)
        for name in fetched:
            self._mark(name, made_now=False)
            self._mark(f"{name}{EXTRACTED}", made_now=not self._extracted(name).exists())
        opened = {}
        for name, path in fetched.items():
            if is_archive(path):
                opened[name] = extract(path, self._extracted(name), meter=meter)
            else:
                opened[name] = path
        return Places(opened, [_used(archive, fetched[archive.file]) for archive in archives])

    def clean(self, archives: Sequence[Archive]) -> None:
        """Delete what preparations have downloaded and extracted; what was there before the first of them stays."""
        for archive in () if self.keep else archives:
            self._delete_marked(f"{archive.file}{EXTRACTED}")
            self._delete_marked(archive.file, spare=f"{archive.file}{EXTRACTED}")
        for folder in sorted({(self.folder / archive.file).parent for archive in archives}, reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def kept(self, archives: Sequence[Archive]) -> list[Path]:
        """The files and folders of archives that are still there."""
        names = [f"{archive.file}{suffix}" for archive in archives for suffix in ("", EXTRACTED)]
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def _extracted(self, file: str) -> Path:
        return self.folder / f"{file}{EXTRACTED}"

    def _mark(self, name: str, *, made_now: bool) -> None:
        """Remember across a kill that an entry was made by us; --keep-archives takes the mark away, and the user's own folder gets none."""
        mark = self.folder / f"{name}{TEMPORARY}"
        if self.keep:
            mark.unlink(missing_ok=True)
        elif made_now:
            mark.touch()

    def _delete_marked(self, name: str, *, spare: str = "") -> None:
        """Delete an entry that is marked, with what lies beside it under its name and a suffix (marks, checks); of one that lies elsewhere, only the latter."""
        entry = self.folder / name
        if entry.exists() and not (self.folder / f"{name}{TEMPORARY}").exists():
            return
        for path in (entry, *entry.parent.glob(f"{escape(entry.name)}.*")):
            if not (spare and path.name.startswith(Path(spare).name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _used(archive: Archive, path: Path) -> UsedArchive:
    checksum = archive.checksum or f"sha256:{file_sha256(path)}"  # a published one was compared with the file when it was fetched
    return UsedArchive(archive.file, archive.url, path.stat().st_size, checksum)

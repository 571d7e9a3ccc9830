"""A dataset's source to its prepared form, `<root>/<name>/{images/, samples-<split>.parquet, manifest.json}`. Knows no single dataset.

The source is a registered dataset, a mix of several, or the user's own data. The folder is written under a temporary name and renamed in one step: a
folder of the final name is always complete. Archives are kept until all that needs them is done, so a preparation that was ended goes on with them.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm.data.archives.meter import Meter
from vlm.data.archives.store import ArchiveStore, Needs, Places
from vlm.data.datasets import DATASETS
from vlm.data.datasets.base import Source
from vlm.data.manifest import MANIFEST, Manifest, SplitFile, tree_sha256
from vlm.data.preparation.existing import manifest_before
from vlm.data.preparation.folder_builder import IMAGES, FolderBuilder, OnBadRow
from vlm.data.preparation.locks import locked
from vlm.data.preparation.readable import readable
from vlm.data.preparation.swap import put_in_place, recover, unfinished
from vlm.data.preparation.verify_pictures import PictureChecker, Verify
from vlm.data.preparation.work import Work, own, plain, registered
from vlm.data.rows import schema
from vlm.errors import ConfigError

log = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what a disk that takes no more bytes says
EMBEDDED_FOLDER = ".embedded"  # of pictures that lie inside the source's files, until they have their place below images/

Progress = Callable[[Iterable[Any], str], Iterable[Any]]  # passes items through, and shows how far it is


@dataclass(frozen=True)
class Prepared:
    """Result of a preparation.

    Attributes:
        folder: The prepared folder.
        manifest: What it holds.
        fresh: False if it was there before and is what was asked for.
        parts: Of a mix, the datasets that it is made of.
        kept: Archives, and what was extracted from them, that are still there.
    """

    folder: Path
    manifest: Manifest
    fresh: bool
    parts: tuple["Prepared", ...] = ()
    kept: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Run:
    """What all folders of one call share."""

    root: Path
    store: ArchiveStore
    overwrite: bool
    workers: int | None
    verify: Verify
    progress: Progress
    meter: Meter | None


@readable()
def prepare(
    name_or_path: str,
    root: Path,
    *,
    options: Any = None,
    name: str = "",
    overwrite: bool = False,
    on_bad_row: OnBadRow | None = None,
    mirror: str = "",
    from_archives: Path | None = None,
    keep_archives: bool = False,
    workers: int | None = None,
    verify: Verify = "decode",
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> Prepared:
    """Prepare a registered dataset, a mix or the user's own data, or find it prepared with the same options.

    Args:
        name_or_path: Name or alias in `DATASETS`, or the path of a file or folder that `vlm.data.own_files` reads.
        root: Folder of the prepared datasets.
        options: Settings of the preparation, of the dataset's own dataclass; None for its defaults.
        name: Name for the user's own data; empty: that of the file or folder.
        overwrite: Replace what is there; of a mix, its parts as well.
        on_bad_row: error: the first faulty row is an error; skip: such rows are dropped. None: skip for registered datasets, error for own data.
        mirror: URL or folder that has the archives under their `file` names.
        from_archives: Folder in which the user has the archives; nothing in it is changed.
        keep_archives: Keep what is downloaded and extracted. Otherwise it is deleted when all is done, unless it was there before.
        workers: Processes that verify pictures; None: one for each CPU.
        verify: decode, header or off; see `vlm.data.preparation.verify_pictures`.
        progress: Shows how far the rows of a split are.
        meter: Shows how far downloads and extractions are.

    Raises:
        UnknownNameError: If there is no such dataset.
        ConfigError: If something cannot be read, the folder exists and is something else, cannot be written or is being written by another process, or an archive cannot be had.
        DataFormatError: If a split has no usable row, or a row is faulty and shall not be skipped.
        MissingPackageError: If a package that ships the data is not installed.
    """
    _refuse_file(root)
    store = ArchiveStore(root, mirror, from_archives, keep_archives)
    run = _Run(root, store, overwrite, workers, verify, progress or (lambda items, _: items), meter)
    if name and name_or_path in DATASETS:
        raise ConfigError(f"--name {name} is for your own data; the registered dataset {name_or_path!r} is prepared under its own name.")
    mix = _mix(name_or_path)
    before = _mix_before(mix, run) if mix else None
    if mix:
        if options not in (None, DATASETS[mix].options):
            raise ConfigError(f"{mix} is a mix of {', '.join(DATASETS[mix].parts)}; set options when you prepare these one by one.")
        works = [registered(part, DATASETS[part], on_bad_row=on_bad_row) for part in DATASETS[mix].parts]
    else:
        works = [_work(name_or_path, root, name, options, on_bad_row)]
    if (mirror or from_archives or keep_archives) and not any(work.archives for work in works):
        log.warning("warning: %s is made of no archive: --mirror, --from-archives and --keep-archives have no effect.", name_or_path)
    prepared = _prepare_all(works, run)
    return _write_mix(mix, before, prepared, run) if mix else prepared[0]


@readable()
def needs(name_or_path: str, root: Path, *, overwrite: bool = False, from_archives: Path | None = None) -> Needs:
    """What `prepare` would download; nothing for what is prepared already and for what is no registered dataset."""
    _refuse_file(root)
    if name_or_path not in DATASETS:
        return Needs()
    name = DATASETS.resolve(name_or_path)
    names = [part for part in DATASETS[name].parts or (name,) if overwrite or not (root / part / MANIFEST).is_file()]
    archives = {archive.file: archive for part in names for archive in DATASETS[part].archives}
    return ArchiveStore(root, from_archives=from_archives).needs(tuple(archives.values()))


def _refuse_file(root: Path) -> None:
    file = next((place for place in (root, *root.parents) if place.exists() and not place.is_dir()), None)
    if file:
        raise ConfigError(f"--root-dir {root} cannot be a folder: {file} is a file. Give a folder for the prepared datasets.")


def _mix(name: str) -> str:
    """The registered name of a mix, or empty."""
    resolved = DATASETS.resolve(name) if name in DATASETS else ""
    return resolved if resolved and DATASETS[resolved].parts else ""


def _work(name_or_path: str, root: Path, name: str, options: Any, on_bad_row: OnBadRow | None) -> Work:
    if name_or_path in DATASETS:
        resolved = DATASETS.resolve(name_or_path)
        return registered(resolved, DATASETS[resolved], options=options, on_bad_row=on_bad_row)
    path = Path(name_or_path)
    if not path.exists():
        if "/" in name_or_path or path.suffix:
            raise ConfigError(f"There is no file or folder {path}. Give the path of your data, or the name of a dataset (`vlm list datasets`).")
        DATASETS.resolve(name_or_path)  # says which names there are
    if options is not None:
        raise ConfigError(f"Options are for registered datasets; {path} has none.")
    if path.is_dir() and root.resolve().is_relative_to(path.resolve()):
        raise ConfigError(f"--root-dir {root} lies inside your data {path}, and would be read as a part of it. Give a folder beside your data.")
    work = own(path, name=name, on_bad_row=on_bad_row)
    if work.name in DATASETS:
        raise ConfigError(f"{work.name!r} is the name of a registered dataset; give your data another one with --name.")
    return work


def _prepare_all(works: Sequence[Work], run: _Run) -> list[Prepared]:
    """Prepare folders that share archives; these are deleted after the last one."""
    found = {work.name: _found(work, run) for work in works}
    missing = [work for work in works if found[work.name] is None]
    if missing:
        archives = {archive.file: archive for work in missing for archive in work.archives}
        locks = [run.root / f".{work.name}.lock" for work in missing] + [run.store.folder / f"{file}.preparing" for file in archives]
        schema()  # if a package is missing, it is said before the download
        checker = PictureChecker(verify=run.verify, workers=run.workers)
        try:
            with locked(locks, work=f"prepares {', '.join(work.name for work in missing)}"), checker:
                for work in missing:
                    recover(run.root / work.name)
                places = run.store.open(tuple(archives.values()), meter=run.meter)
                for work in missing:
                    found[work.name] = _found(work, run) or _make(work, places, checker, run)
                run.store.clean(tuple(archives.values()))
        except OSError as error:
            raise _disk_error(error, run.root / missing[0].name, run.root) from error
        finally:
            with suppress(OSError):
                run.store.folder.rmdir()  # if nothing is left in it; the last lock was
    kept = tuple(run.store.kept([archive for work in works for archive in work.archives]))
    return [replace(prepared, kept=kept) for work in works if (prepared := found[work.name]) is not None]


def _found(work: Work, run: _Run) -> Prepared | None:
    """The folder as it was prepared before, or None if it has to be made."""
    folder = run.root / work.name
    sources, elsewhere = ([work.own], "--root-dir or --name") if work.own else (_archive_folders(run), "--root-dir")
    manifest = manifest_before(folder, overwrite=run.overwrite, sources=sources, elsewhere=elsewhere)
    if manifest is None:
        return None
    if (manifest.name, manifest.options) != (work.name, work.manifest.options):
        raise _prepared_otherwise(folder, manifest, work)
    return Prepared(folder, manifest, fresh=False)


def _archive_folders(run: _Run) -> list[Path]:
    """Folders of the user's that archives are taken from."""
    return [folder for folder in (run.store.from_archives, Path(run.store.mirror) if run.store.mirror else None) if folder]


def _prepared_otherwise(folder: Path, before: Manifest, work: Work) -> ConfigError:
    """The error that tells a change of the same data from other data; the manifest knows the name of its source, and not where it lay."""
    if before.name != work.name or (work.own and before.sources != work.manifest.sources):
        choose = "a name for yours with --name" if work.own else "another --root-dir"
        return ConfigError(f"{folder} holds another dataset, {before.name} from {'; '.join(before.sources)}; choose {choose}.")
    if work.own:
        changed = f"The files in {work.own}{os.sep} have" if work.own.is_dir() else f"The file {work.own} has"
        return ConfigError(
            f"{changed} changed since {folder} was prepared; add --overwrite to prepare it again, or choose --name if this is other data of the same name."
        )
    return ConfigError(
        f"{folder} was prepared with the options {before.options}, wanted {work.manifest.options}. Add --overwrite to prepare it again."
    )


def _make(work: Work, places: Places, checker: PictureChecker, run: _Run) -> Prepared:
    folder = run.root / work.name
    building = unfinished(folder)
    try:
        building.mkdir(parents=True)
        source = work.open(places.opened, (building / EMBEDDED_FOLDER).absolute())
        manifest = _build(building, work, source, checker, run)
        files = {archive.file for archive in work.archives}
        manifest = replace(manifest, archives=[archive for archive in places.used if archive.file in files], verified=run.verify)
        manifest.write(building)
        put_in_place(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Prepared(folder, manifest, fresh=True)


def _build(folder: Path, work: Work, source: Source, checker: PictureChecker, run: _Run) -> Manifest:
    builder = FolderBuilder(folder, locate=source.locate, checker=checker, linkable=(run.store.folder, folder / EMBEDDED_FOLDER))
    splits: dict[str, SplitFile] = {}
    dropped: dict[str, dict[str, list[dict[str, str]]]] = {}
    for split in work.splits:
        rows = run.progress(source.rows(split), work.where[split])
        splits[split], dropped[split] = builder.write_split(split, rows, where=work.where[split], on_bad_row=work.on_bad_row)
    shutil.rmtree(folder / EMBEDDED_FOLDER, ignore_errors=True)
    return replace(work.manifest, splits=splits, dropped=dropped, images_sha256=tree_sha256(folder / IMAGES))


def _mix_before(name: str, run: _Run) -> Manifest | None:
    """The manifest of a mix that was prepared before.

    Raises:
        ConfigError: If something else has its place.
    """
    folder = run.root / name
    manifest = manifest_before(folder, overwrite=run.overwrite, sources=_archive_folders(run), elsewhere="--root-dir")
    if manifest and not manifest.parts:
        raise ConfigError(
            f"{folder} holds another dataset, {manifest.name} from {'; '.join(manifest.sources)}, and no mix; choose another --root-dir."
        )
    return manifest


def _write_mix(name: str, before: Manifest | None, parts: Sequence[Prepared], run: _Run) -> Prepared:
    """The folder of a mix: a manifest that names its parts."""
    spec, folder = DATASETS[name], run.root / name
    splits = {split: _sum([part.manifest.splits[split] for part in parts if split in part.manifest.splits]) for split in spec.splits}
    names = [part.manifest.name for part in parts]
    manifest = Manifest(name, splits, [spec.source], spec.license, spec.citation, plain(spec.options), {}, parts=names)
    if manifest != before:
        try:
            with locked([run.root / f".{name}.lock"], work=f"prepares {name}"):
                recover(folder)
                unfinished(folder).mkdir(parents=True)
                manifest.write(unfinished(folder))
                put_in_place(folder)
        except OSError as error:
            raise _disk_error(error, folder, run.root) from error
    return Prepared(folder, manifest, fresh=manifest != before, parts=tuple(parts), kept=parts[0].kept)


def _sum(files: Sequence[SplitFile]) -> SplitFile:
    rows, images, duplicates = (sum(getattr(file, name) for file in files) for name in ("rows", "images", "duplicate_ids"))
    return SplitFile("", rows, "", images, duplicates)


def _disk_error(error: OSError, folder: Path, root: Path) -> ConfigError:
    place = Path(str(error.filename)) if error.filename else folder
    reason = f"{error.strerror or error}: {place}"
    if error.errno in FULL:  # copying names the file that it reads
        place, reason = folder, str(error.strerror)
    if error.errno != errno.EROFS and not place.resolve().is_relative_to(root.resolve()):  # a lock names itself by its absolute path
        return ConfigError(f"Cannot read the source of {folder} ({reason}). Make it readable.")
    return ConfigError(f"Cannot write {folder} ({reason}). Make it writable or free space there, or choose another folder with --root-dir.")

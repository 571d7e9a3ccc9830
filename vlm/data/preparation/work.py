"""What a preparation is asked for, as one value: a registered dataset, or the user's own data under a name of its own. Opens nothing and writes nothing."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm.data.datasets.base import EMBEDDED, Archive, DatasetSpec, Source
from vlm.data.manifest import MANIFEST, Manifest, file_sha256, tree_sha256
from vlm.data.preparation.folder_builder import OnBadRow, is_safe
from vlm.data.sample import Row, Sample
from vlm.errors import ConfigError

OWN_SPLIT = "train"
OWN_LICENSE = "not stated: the user's own data"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Work:
    """One folder to be made.

    Attributes:
        name: Name of the folder.
        manifest: What is known of it before: name, sources, license, citation and options.
        splits: Names of the splits.
        archives: What must be downloaded.
        open: Opens the source, from the places of the archives and an absolute folder for pictures that the source holds inside its files.
        where: What the rows of a split are called in messages, by split.
        on_bad_row: What happens to faulty rows.
        own: The file or folder of the user's own data; None for a registered dataset.
    """

    name: str
    manifest: Manifest
    splits: tuple[str, ...]
    archives: tuple[Archive, ...]
    open: Callable[[Mapping[str, Path], Path], Source]
    where: Mapping[str, str]
    on_bad_row: OnBadRow
    own: Path | None = None


def registered(name: str, spec: DatasetSpec, *, options: Any = None, on_bad_row: OnBadRow | None = None) -> Work:
    """A registered dataset; faulty rows are dropped unless it is said otherwise.

    Args:
        name: Its registered name.
        spec: The dataset.
        options: Settings of the preparation; None for the defaults.
        on_bad_row: What happens to faulty rows; None: skip.
    """
    chosen = spec.options if options is None else options
    return Work(
        name=name,
        manifest=Manifest(name, {}, [spec.source], spec.license, spec.citation, plain(chosen), {}),
        splits=spec.splits,
        archives=spec.archives,
        open=lambda places, embedded: spec.open(chosen, {**places, EMBEDDED: embedded}),
        where={split: f"{name} {split}" for split in spec.splits},
        on_bad_row=on_bad_row or "skip",
    )


def own(path: Path, *, name: str = "", on_bad_row: OnBadRow | None = None) -> Work:
    """The user's own data; the first faulty row is an error unless it is said otherwise.

    Args:
        path: File or folder that `vlm.data.own_files` reads.
        name: Name of the prepared dataset; empty: that of the file or folder.
        on_bad_row: What happens to faulty rows; None: error.

    Raises:
        ConfigError: If the name cannot be one, or the folder is a prepared dataset itself.
    """
    name = name or (path.stem if path.is_file() else path.resolve().name)
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a prepared dataset; give one of letters, digits, '.', '_' and '-' with --name.")
    if (path / MANIFEST).is_file():
        raise ConfigError(f"{path} is a prepared dataset already. Look at it with: vlm data check {path}")

    def open_own(places: Mapping[str, Path], embedded: Path) -> Source:
        from vlm.data.own_files import own_rows

        own = own_rows(path, pictures=embedded)
        names = _OwnNames(own.image_root.absolute(), embedded)
        return Source(rows=lambda split: map(names.renamed, own.rows), locate=names.locate)

    return Work(
        name=name,
        manifest=Manifest(
            name,
            {},
            [path.name if path.is_file() else path.resolve().name],
            OWN_LICENSE,
            "",
            {"content_sha256": file_sha256(path) if path.is_file() else tree_sha256(path)},
            {},
        ),
        splits=(OWN_SPLIT,),
        archives=(),
        open=open_own,
        where={OWN_SPLIT: path.name},
        on_bad_row=on_bad_row or "error",
        own=path,
    )


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON will give them back."""
    return json.loads(json.dumps(asdict(options), default=str))


@dataclass
class _OwnNames:
    """Names below `images/` for pictures that lie anywhere.

    Attributes:
        root: Folder that relative image paths start from.
        embedded: Folder of the pictures that were inside the data.
        elsewhere: Files of the names that are not paths below the root.
    """

    root: Path
    embedded: Path
    elsewhere: dict[Path, Path] = field(default_factory=dict)

    def renamed(self, row: Row) -> Row:
        """The row, its pictures named safely."""
        return replace(row, images=tuple(map(self._name, row.images))) if isinstance(row, Sample) else row

    def locate(self, name: Path) -> Path:
        """The file behind a name."""
        return self.elsewhere.get(name, self.root / name)

    def _name(self, image: Path) -> Path:
        if image.is_absolute() and image.is_relative_to(self.root):
            image = image.relative_to(self.root)
        if is_safe(image) or not image.name:
            return image
        if image.is_relative_to(self.embedded):
            name = image.relative_to(self.embedded)
        else:
            folder = hashlib.sha256(image.parent.as_posix().encode("utf-8", "backslashreplace")).hexdigest()[:12]
            name = Path("elsewhere") / folder / image.name  # two files of the same name in two folders stay two
        self.elsewhere[name] = self.root / image
        return name

"""What a dataset is before it is prepared: data about it, and one function that reads its sources. Imports no torch.

`vlm.data.preparation.prepare` gets the archives, checks rows and pictures and writes both; a dataset's own file says which archives there are, and which rows they make.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data.sample import Row

EMBEDDED = "embedded pictures"  # names, among the places that a dataset gets, an absolute folder for pictures that lie inside its files; it goes with the source


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file to download.

    Attributes:
        file: Name of the file on disk, unique over all datasets unless it is the very same file (two `images.zip` of different sources get different
            names): what --from-archives and --mirror look for. Zip and tar files are extracted, others are used as they are.
        url: Where it is published.
        size: Its size in bytes as published or measured, 0 where nobody says.
        checksum: `sha256:<hex>` or `md5:<hex>` as published, or empty.
        unpacked: Bytes on disk of what is in it; 0: about its own size.
        page: Where a person gets it, if there is no direct link.
    """

    file: str
    url: str
    size: int = 0
    checksum: str = ""
    unpacked: int = 0
    page: str = ""


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        rows: The rows of a split; pictures have the names that they shall have below `images/` of the prepared folder.
        locate: The file of the source behind a picture's name, or None where there is none.
    """

    rows: Callable[[str], Iterable[Row]]
    locate: Callable[[Path], Path | None]


@dataclass(frozen=True)
class NoOptions:
    """For datasets whose preparation has no settings."""


def _no_source(options: Any, places: Mapping[str, Path]) -> Source:
    raise NotImplementedError("A mix has no rows of its own.")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset, known before any download.

    Attributes:
        open: Opens the source. Gets the options, and places: for each archive by its `file` the folder that it was extracted to, or the file itself, and
            by `EMBEDDED` a folder for pictures that lie inside such files.
        options: Settings of the preparation, a frozen dataclass; stored in the manifest.
        archives: What must be downloaded.
        parts: For a mix: names of the datasets that are read one after the other; a mix has neither archives nor rows of its own.
        splits: Names of the splits, training first.
        num_samples: Conversations of the first split as published, before faulty ones are left out; 0 where nobody says.
        num_images: Pictures of the first split as published, where several rows are of the same picture; 0 where nobody says.
        description: One line.
        license: Licence of the data.
        source: Where the data comes from.
        citation: How to cite it.
        package: pip package that ships it, or empty.
        aliases: Other names.
    """

    open: Callable[[Any, Mapping[str, Path]], Source] = _no_source
    options: Any = NoOptions()
    archives: tuple[Archive, ...] = ()
    parts: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    num_samples: int = 0
    num_images: int = 0
    description: str
    license: str
    source: str
    citation: str
    package: str = ""
    aliases: tuple[str, ...] = ()

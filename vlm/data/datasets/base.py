"""What a dataset is before it is prepared: data about it, and one function that reads its source. Imports no torch.

`vlm.data.prepare` checks the rows, copies the pictures and writes both; a dataset's own file only says which rows there are.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE = "<image>"  # vlm.types.IMAGE_PLACEHOLDER, written again because vlm.types imports torch


@dataclass(frozen=True)
class Conversation:
    """One row of a source, not checked yet.

    Attributes:
        id: Name of the row in its source.
        images: Names of its pictures, as they shall lie below `images/` of the prepared folder.
        turns: What user and assistant say in turn, the user first; `<image>` stands for one picture.
        extra: What evaluations want to know besides.
    """

    id: str
    images: tuple[Path, ...]
    turns: tuple[str, ...]
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A row of a source that does not become a sample.

    Attributes:
        id: Name of the row in its source.
        reason: Why, in few words that are the same for every row dropped for that reason.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        rows: The rows of a split.
        locate: The file of the source behind a picture's name.
    """

    rows: Callable[[str], Iterable[Conversation | Dropped]]
    locate: Callable[[Path], Path]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset, known before any download.

    Attributes:
        prepare: Opens the source; its argument is `options` or another value of the same dataclass.
        options: Settings of the preparation, a frozen dataclass; stored in the manifest.
        splits: Names of the splits, training first.
        description: One line.
        license: Licence of the data.
        source: Where the data comes from.
        citation: How to cite it.
        package: pip package that ships it, or empty.
        aliases: Other names.
    """

    prepare: Callable[[Any], Source]
    options: Any
    splits: tuple[str, ...]
    description: str
    license: str
    source: str
    citation: str
    package: str = ""
    aliases: tuple[str, ...] = ()

"""What a dataset is before it is prepared: data about it, and one function that reads its source. Imports no torch.

`vlm.data.prepare` copies the pictures and writes the rows; a dataset's own file only says which rows there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        samples: The `Sample`s and `Dropped` rows of a split; image paths are the names below `images/` of the prepared folder.
            (Any, because `vlm.data.sample` imports torch and this file must not.)
        locate: The file of the source behind such a name.
    """

    samples: Callable[[str], Iterable[Any]]
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

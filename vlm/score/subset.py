"""The kept pairs as a table that `vlm preprocess` and training read: JSON lines or CSV, with image and caption. Knows no rule of selection.

Relative names of pictures are written relative to the subset's folder, as `vlm.data.own_files` reads them.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from vlm.data.formats.base import is_url
from vlm.errors import ConfigError, DataFormatError
from vlm.score.located import Pictures
from vlm.score.schema import INSIDE
from vlm.score.scores import Scores
from vlm.score.selection import Selection, is_kept

SUFFIXES = (".jsonl", ".csv")
LOOKED_AT = 100  # pictures, before a subset is written whose paths lead nowhere


@dataclass(frozen=True)
class Written:
    """What a subset holds.

    Attributes:
        path: Its file.
        rows: Its rows.
        urls: Rows whose picture is a URL, which preparation does not read.
    """

    path: Path
    rows: int
    urls: int


def write_subset(scores: Scores, selection: Selection, out: Path, *, pictures: Pictures, also: tuple[str, ...] = ()) -> Written:
    """Write the kept pairs in the order of the scores, under a temporary name first.

    Args:
        scores: The opened files.
        selection: What is kept of them.
        out: A `.jsonl` or `.csv` file.
        pictures: Where the pictures are.
        also: Columns that are written beside id, image, caption and cos.

    Raises:
        ConfigError: If the file cannot be written or is of another kind.
        DataFormatError: If none of the first pictures is there, or a picture has no name that can be read.
    """
    check_suffix(out)
    _refuse_lost_pictures(scores, selection, pictures)
    building = out.with_name(f"{out.name}.tmp")
    urls = 0
    make_folder(out)
    try:
        with building.open("w", encoding="utf-8", newline="") as file:
            put = _writer(file, out.suffix.lower(), ("id", "image", "caption", "cos", *also))
            renamed = _renamer(pictures, out.parent)
            for row in _kept(scores, selection, ("row", "image", "caption", "cos", *also)):
                name = renamed(row["image"])
                urls += is_url(name)
                put({"id": row.pop("row"), **row, "image": name, "cos": round(row["cos"], 6)})
        building.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        with suppress(OSError):  # of a folder that cannot be written
            building.unlink(missing_ok=True)
    return Written(out, selection.num_kept, urls)


def make_folder(out: Path) -> None:
    """Make the folder of a subset.

    Raises:
        ConfigError: If that is refused.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{out} cannot be written: {error.strerror}. Name another file with --out.")


def check_suffix(out: Path) -> None:
    """Refuse a name that says no known kind of file.

    Raises:
        ConfigError: If that is so.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out} is to end with {' or '.join(SUFFIXES)}, which `vlm preprocess` and training read.")


def _kept(scores: Scores, selection: Selection, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    present = tuple(column for column in columns if column in scores.columns)
    for start, batch in scores.batches(*dict.fromkeys(present)):
        kept = is_kept(selection.fates[start : start + batch.num_rows])
        if not kept.any():
            continue
        for number, row in zip(start + kept.nonzero()[0], batch.filter(_mask(kept)).to_pylist(), strict=True):
            yield {"row": int(number)} | row


def _mask(kept: Any) -> Any:
    import pyarrow

    return pyarrow.array(kept)


def _refuse_lost_pictures(scores: Scores, selection: Selection, pictures: Pictures) -> None:
    names = [row["image"] or "" for row in islice(_kept(scores, selection, ("image",)), LOOKED_AT)]
    inside = next((name for name in names if name.startswith(INSIDE)), None)
    if inside:
        raise DataFormatError(f"{inside[:40]} is a picture that lay in the scored table itself: a subset names files. Score a table of files.")
    files = [file for name in names if not is_url(name) and (file := pictures.file(name)) is not None]
    if files and not any(file.is_file() for file in files):
        raise DataFormatError(f"There is no picture {files[0]}. Say with --image-root below which folder the pictures of the scores lie.")


def _renamer(pictures: Pictures, folder: Path) -> Callable[[str], str]:
    """From a picture's name in the scores to that in a table of that folder; a URL stays one where it has no file."""
    here, home = replace(pictures, root=pictures.root.resolve()), folder.resolve()

    @lru_cache(maxsize=4_096)
    def renamed(name: str) -> str:
        file = here.file(name)
        if file is None or Path(name).is_absolute():
            return name
        return Path(os.path.relpath(file, home)).as_posix()

    return renamed


def _writer(file: TextIO, suffix: str, columns: tuple[str, ...]) -> Callable[[Mapping[str, Any]], None]:
    if suffix == ".jsonl":
        return lambda row: _write_line(file, row)
    table = csv.DictWriter(file, columns)
    table.writeheader()
    return lambda row: table.writerow(row)


def _write_line(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")

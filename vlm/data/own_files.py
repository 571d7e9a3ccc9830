"""A user's own data by its path: finds the reader by a look at the data. Knows no format's details and opens no picture.

Paths that are read:
    a `.json` or `.jsonl` file of any format of `vlm.data.formats`, its image paths relative to its folder;
    a `.csv`, `.tsv` or `.parquet` file with a column for the image and one for its caption, or for a question and its answer;
    a folder of pictures, each with its caption in a `.txt` file of the same name beside it;
    a Hugging Face dataset on disk, its pictures inside: a Parquet file, a folder of such files, or a folder of `save_to_disk`.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.data.formats import FORMATS
from vlm.data.formats.base import CAPTION_REQUEST, faulty, finished, pairs_of_turns, shown, text_of, with_placeholders
from vlm.data.formats.image_text import EXPECTED
from vlm.data.formats.pictures import holds_pictures
from vlm.data.formats.sources import CSV_SUFFIXES, FILE_SUFFIXES, JSON_SUFFIXES, first_rows
from vlm.data.manifest import MANIFEST
from vlm.data.sample import Row
from vlm.errors import DataFormatError

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXT_SUFFIX = ".txt"
LIST_SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES)
HARDLY_ANY = 0.1  # texts to a picture: those of a license and a readme are no captions
NAMED = 5  # prepared datasets or list files that a message lists
LOOKED_AT = 100  # rows, to find one that is not faulty and tells the format


@dataclass(frozen=True)
class OwnFiles:
    """A user's own data, opened.

    Attributes:
        rows: Samples and faulty rows, to be gone through once. Image paths are relative to `image_root`; absolute ones are used as they are.
        image_root: Folder below which the pictures lie.
    """

    rows: Iterable[Row]
    image_root: Path


def own_rows(path: Path, *, pictures: Path) -> OwnFiles:
    """Open a user's own file or folder.

    Args:
        path: The file or folder.
        pictures: Folder where pictures that lie inside the data are written. Rows may name files in it by absolute path, so it must stay where it is.

    Raises:
        DataFormatError: If there is nothing at the path, or its format is not known; the known formats and the keys found are named.
        MissingPackageError: If pyarrow is needed and not installed.
    """
    if prepared := sorted({file.parent.name for file in path.glob("*/samples-*.parquet") if (file.parent / MANIFEST).is_file()}):
        raise DataFormatError(f"{path} holds prepared datasets ({', '.join(prepared[:NAMED])}); name one of them, such as {path / prepared[0]}.")
    if path.is_dir() and not _is_table_folder(path):
        _refuse_lists(path)
        if not _holds_picture(path):
            raise DataFormatError(
                f"{path} holds no picture, no Parquet file and no folder of `save_to_disk`; expected a folder of pictures with .txt files."
            )
        return OwnFiles(_folder_rows(path), path)
    if not path.exists():
        raise DataFormatError(f"There is no file or folder {path}.")
    if path.is_file() and path.suffix.lower() not in FILE_SUFFIXES:
        raise DataFormatError(f"{path} is of no known kind; expected {', '.join(FILE_SUFFIXES)}, or a folder.")
    name, row = _recognized(path)
    log.info("%s is read as %s.", path, FORMATS[name].description)
    beside = path if path.is_dir() else path.parent
    if path.is_dir() or path.suffix.lower() == ".parquet":
        _refuse_lost_pictures(path, beside)
    return OwnFiles(FORMATS[name].read(path, pictures=pictures), pictures if holds_pictures(row) else beside)


def recognizes_own(path: Path) -> bool:
    """Whether a path is a user's own data, and not a prepared dataset: a file by its suffix, a folder by what is in it."""
    if path.is_dir():
        return not (path / MANIFEST).is_file() and (_is_table_folder(path) or _holds_picture(path))
    return path.suffix.lower() in FILE_SUFFIXES


def _recognized(path: Path) -> tuple[str, Any]:
    """The format of a file, and the row that tells it: the first one that is of any format."""
    rows = []
    for row in islice(first_rows(path), LOOKED_AT):
        if isinstance(row, dict):
            for name, spec in FORMATS.items():
                if spec.recognizes(row):
                    return name, row
        rows.append(row)
    whole = [row for row in rows if not isinstance(row, DataFormatError)]
    if not whole:
        raise DataFormatError(f"{path}, row 1: {rows[0]} None of the first {len(rows)} row(s) can be read.")
    keys = shown(sorted(map(str, whole[0]))) if isinstance(whole[0], dict) else ""
    if path.suffix.lower() in CSV_SUFFIXES:
        raise DataFormatError(f"{path} is of no known format: its first line is to name the columns and has {keys}; expected {EXPECTED}.")
    known = "; ".join(spec.description for spec in FORMATS.values())
    raise DataFormatError(
        f"{path} is of no known format: its first row has {f'the keys {keys}' if keys else shown(whole[0])}. Known formats: {known}."
    )


def _is_table_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) or any(path.rglob("*.parquet"))


def _refuse_lists(path: Path) -> None:
    """Refuse a folder whose texts are in a list file and not beside the pictures."""
    pictures, texts, lists = 0, 0, list[str]()
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = Counter(Path(name).suffix.lower() for name in names)
        stems = {Path(name).stem for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES}  # a list is of no single picture
        pictures += sum(suffixes[suffix] for suffix in PICTURE_SUFFIXES)
        texts += suffixes[TEXT_SUFFIX]
        lists += [
            (Path(folder) / name).relative_to(path).as_posix()
            for name in names
            if name.lower().endswith(LIST_SUFFIXES) and Path(name).stem not in stems
        ]
    if lists and texts <= pictures * HARDLY_ANY:
        more = f" and {len(lists) - NAMED} more" if len(lists) > NAMED else ""
        which = "that file:" if len(lists) == 1 else "the one that you mean, such as"
        raise DataFormatError(f"{path} holds {', '.join(sorted(lists)[:NAMED])}{more}: give {which} {path / min(lists)}.")


def _refuse_lost_pictures(path: Path, beside: Path) -> None:
    """Refuse a table of Hugging Face's picture columns without the pictures' bytes, none of whose first paths leads to a file."""
    items = [item for row in islice(first_rows(path), LOOKED_AT) for item in _picture_items(row)]
    named = [item["path"] for item in items if isinstance(item["path"], str)]
    if named and not any(item["bytes"] is not None for item in items) and not any((beside / name).is_file() for name in named):
        kind = "dataset" if (path / "state.json").is_file() else "Parquet"
        raise DataFormatError(
            f"{path}: the {kind} holds only paths of pictures, relative to {beside.resolve()}, and {named[0]} is not there; "
            "save it with `save_to_disk`, which puts the pictures inside, or put the pictures there."
        )


def _picture_items(value: Any) -> Iterator[dict[str, Any]]:
    """The values of a row that are pictures as Hugging Face writes them."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _picture_items(item)


def _holds_picture(path: Path) -> bool:
    return any(Path(name).suffix.lower() in PICTURE_SUFFIXES for _, _, names in os.walk(path, onerror=_refuse) for name in names)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed; `os.walk` would pass over it."""
    raise DataFormatError(f"{error.filename} cannot be read: {error.strerror}.")


def _folder_rows(root: Path) -> Iterator[Row]:
    """Pictures with the captions beside them, folder by folder in order of their names."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        by_stem: dict[str, list[Path]] = {}
        for name in sorted(names):
            file = Path(folder) / name
            if not name.startswith(".") and file.suffix.lower() in (*PICTURE_SUFFIXES, TEXT_SUFFIX):
                by_stem.setdefault(file.stem, []).append(file)
        for files in by_stem.values():
            yield _captioned(files, root)


def _captioned(files: list[Path], root: Path) -> Row:
    """The row of the files of one stem."""
    texts = [file for file in files if file.suffix.lower() == TEXT_SUFFIX]
    images = [file for file in files if file not in texts]
    name = files[0].relative_to(root).with_suffix("").as_posix()
    try:
        if not texts:
            raise DataFormatError(f"an image has no text: expected {files[0].stem}{TEXT_SUFFIX} beside it.")
        if not images:
            raise DataFormatError(f"a text has no image: expected a picture {files[0].stem} beside it, such as {files[0].stem}.jpg.")
        if len(files) > 2:
            raise DataFormatError(f"files share a name: {', '.join(file.name for file in files)}.")
        caption = text_of(_read_text(texts[0]), "the caption")
        return finished({"id": name}, name, [images[0].relative_to(root)], pairs_of_turns(with_placeholders([CAPTION_REQUEST], 1), [caption]))
    except DataFormatError as error:
        return faulty(error, id=name, where=str(files[0]))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"a text is not UTF-8: {error.reason}. Save it as UTF-8.") from None
    except OSError as error:
        raise DataFormatError(f"a text cannot be read: {error.strerror}.") from None

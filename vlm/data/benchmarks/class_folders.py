"""A folder for each class, or a file of pictures with their classes; ImageNet's validation pictures are such folders too.

root/{cat,dog}/*.jpg                                                class names are the folders' names, or stand in root/names.txt or root/names.json
{"image": "a.jpg", "label": "cat"}                                  .jsonl or .json, paths relative to the file
{"image": "a.jpg", "labels": ["cat", "dog"]}                        the same where a picture may be of several classes
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm.data.benchmarks.base import BenchmarkSpec, Labelled, Picture
from vlm.data.benchmarks.prompts import imagenet_names, read_names, refuse_equal_names
from vlm.data.formats.base import fields_of, image_of, list_of, shown, text_of
from vlm.data.formats.json_rows import read_json_rows
from vlm.data.own_files import PICTURE_SUFFIXES
from vlm.errors import DataFormatError

NAMES_FILES = ("names.txt", "names.json")
WNID = re.compile(r"n\d{8}")
NUM_IMAGENET_CLASSES = 1000


def open_labelled(path: Path, split: str = "", names: Path | None = None) -> Labelled:
    """A folder of class folders, or a JSON file of rows.

    Args:
        path: The folder or file.
        split: A folder below `path`; empty for `path` itself.
        names: File of class names (`read_names`); None for `names.txt` or `names.json` in the folder, or else the folders' names with spaces for underscores.

    Raises:
        DataFormatError: If there is no class, a class has no picture or no name, or two have the same name.
    """
    if path.is_file():
        return _rows(path, names)
    root = path / split
    folders = _class_folders(root)
    keys = [folder.name for folder in folders]
    names = names or next((root / file for file in NAMES_FILES if (root / file).is_file()), None)
    class_names = read_names(names, keys) if names else tuple(key.replace("_", " ") for key in keys)
    refuse_equal_names(class_names, where=names or root)
    return _of_folders(path.resolve().name, root, folders, class_names)


def open_imagenet(path: Path, split: str = "", names: Path | None = None) -> Labelled:
    """ImageNet-1k from a folder for each wnid, below `path/<split>`, or `path` itself if that has no `val`. Names belong to the sorted wnids.

    Raises:
        DataFormatError: If there are not exactly 1,000 folders named by wnids.
        MissingPackageError: If open_clip, which has the names, is not installed.
    """
    root = path if split == "val" and not (path / split).is_dir() else path / split
    folders = _class_folders(root)
    strange = [folder.name for folder in folders if not WNID.fullmatch(folder.name)]
    if strange or len(folders) != NUM_IMAGENET_CLASSES:
        found = f"{len(folders)} class folders" + (f", among them {strange[0]!r}" if strange else "")
        raise DataFormatError(
            f"{root} has {found}; ImageNet-1k has {NUM_IMAGENET_CLASSES}, named by wnids such as n01440764, and its names belong to their sorted order. "
            "For other classes use --benchmark folders with a names.txt."
        )
    class_names = read_names(names, [folder.name for folder in folders]) if names else imagenet_names()
    return _of_folders("imagenet1k", root, folders, class_names)


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataFormatError(f"There is no folder {root}.")
    folders = sorted((entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=lambda folder: folder.name)
    if not folders:
        raise DataFormatError(f"{root} has no folder; expected one for each class, with its pictures.")
    return folders


def _of_folders(name: str, root: Path, folders: Sequence[Path], class_names: tuple[str, ...]) -> Labelled:
    files = [_pictures_below(folder) for folder in folders]
    empty = [folder.name for folder, found in zip(folders, files, strict=True) if not found]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataFormatError(f"{root}: the class folder {empty[0]!r}{more} has no picture ({', '.join(PICTURE_SUFFIXES)}). Remove it, or fill it.")
    pictures = [Picture(file.relative_to(root).as_posix(), file) for found in files for file in found]
    labels = torch.tensor([number for number, found in enumerate(files) for _ in found])
    return Labelled(name, pictures, labels, class_names)


def _pictures_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(names) if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES]
    return found


def _rows(path: Path, names: Path | None) -> Labelled:
    rows = [_row(value, f"{path}, row {number}") for number, value in read_json_rows(path)]
    if not rows:
        raise DataFormatError(f"{path} has no row.")
    several = isinstance(rows[0][1], list)
    if any(isinstance(classes, list) != several for _, classes in rows):
        raise DataFormatError(f"{path}: some rows have 'label' and some 'labels'; expected the same in all.")
    keys = sorted({key for _, classes in rows for key in (classes if isinstance(classes, list) else [classes])})
    class_names = read_names(names, keys) if names else tuple(keys)
    refuse_equal_names(class_names, where=names or path)
    number = {key: i for i, key in enumerate(keys)}
    if several:
        labels = torch.zeros(len(rows), len(keys), dtype=torch.bool)
        for i, (_, classes) in enumerate(rows):
            labels[i, [number[key] for key in classes]] = True
    else:
        labels = torch.tensor([number[str(key)] for _, key in rows])
    return Labelled(path.stem, [Picture(image.as_posix(), path.parent / image) for image, _ in rows], labels, class_names)


def _row(value: Any, where: str) -> tuple[Path, str | list[str]]:
    try:
        if isinstance(value, DataFormatError):
            raise value
        row = fields_of(value)
        if "labels" in row:
            return image_of(row.get("image")), [text_of(label, "a label") for label in list_of(row, "labels")]
        if "label" not in row:
            raise DataFormatError(f"the class is missing: found the keys {shown(sorted(row))}; expected 'label' or 'labels'.")
        return image_of(row.get("image")), text_of(row["label"], "'label'")
    except DataFormatError as error:
        raise DataFormatError(f"{where}: {error}") from None


SPECS = {
    "folders": BenchmarkSpec(
        open=open_labelled, templates="generic", split="", description="a folder for each class, or rows with image and label or labels"
    ),
    "imagenet1k": BenchmarkSpec(
        open=open_imagenet,
        templates="imagenet",
        split="val",
        description="ImageNet-1k (arXiv:1409.0575): 1,000 folders of validation pictures, named by wnids",
        aliases=("imagenet",),
    ),
}

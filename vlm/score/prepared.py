"""Prepared datasets of `vlm preprocess` as tables of pairs: each sample of one picture, with its first answer as caption. Opens no picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.data.manifest import MANIFEST, Manifest
from vlm.errors import ConfigError, DataFormatError, UnknownNameError

READ = ("id", "images", "messages")  # columns of the file
GIVEN = ("id", "image", "caption")  # columns that its rows have here


def prepared_split(name: str) -> Path | None:
    """The Parquet file of a prepared dataset's split, by `FOLDER@SPLIT`, or `FOLDER` for train or the only one; None for what is no prepared dataset.

    Raises:
        ConfigError: If it is a mix of datasets.
        UnknownNameError: If it has no such split.
    """
    base, _, split = name.rpartition("@") if "@" in name and not Path(name).exists() else (name, "", "")
    folder = Path(base)
    if not _is_prepared(folder):
        return None
    manifest = Manifest.read(folder)
    if manifest.parts:
        raise ConfigError(
            f"{base} is a mix of prepared datasets. Name them instead: {', '.join(str(folder.parent / part) for part in manifest.parts)}."
        )
    split = split or ("train" if "train" in manifest.splits or len(manifest.splits) > 1 else next(iter(manifest.splits)))  # as training does
    if split not in manifest.splits:
        raise UnknownNameError(f"split of {base}", split, manifest.splits)
    return folder / manifest.splits[split].file


def _is_prepared(folder: Path) -> bool:
    """True for what `vlm preprocess` made; scores and cached vectors have another manifest."""
    try:
        return "splits" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def holds_samples(columns: Sequence[str]) -> bool:
    """True for the columns of a prepared dataset's file."""
    return set(READ) <= set(columns)


def pair_of(row: Mapping[str, Any]) -> Mapping[str, Any] | DataFormatError:
    """The row of a sample, or why it is none."""
    if len(row["images"]) != 1:
        return DataFormatError(f"the sample {row['id']!r} has {len(row['images'])} pictures; a pair has one.")
    answers = (message["text"] for message in row["messages"] if message["role"] == "assistant")
    return {"id": row["id"], "image": row["images"][0], "caption": next(answers, "")}

"""`vlm preprocess --dataset-id easy-vqa --root-dir data`, the same as `scripts/preprocess.py`: prepares a registered dataset."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.conf.cli import parse


@dataclass(frozen=True)
class Arguments:
    """What to prepare, and where."""

    dataset_id: str
    """Name of the dataset (`vlm list datasets`)."""
    root_dir: Path = Path("data")
    """Folder of the prepared datasets; the dataset gets a folder of its name in it."""
    overwrite: bool = False
    """Replace the dataset if it is there already."""


def main(argv: Sequence[str]) -> None:
    """Prepare, and say what was written."""
    arguments = parse(Arguments, argv, prog="vlm preprocess", description="Prepare a dataset for training: pictures, rows and a manifest.")
    from vlm.data.prepare import prepare

    print_prepared(prepare(arguments.dataset_id, arguments.root_dir, overwrite=arguments.overwrite, progress=show_progress))


def print_prepared(prepared: Any) -> None:
    """Splits, dropped rows, licence and place of a `Prepared` dataset."""
    manifest = prepared.manifest
    done = "prepared" if prepared.fresh else "already prepared with the same options"
    print(f"{manifest.name}: {done} in {prepared.folder}")
    for split, file in manifest.splits.items():
        print(f"  {split:8} {file.rows:>8,} conversations")
        for reason, ids in manifest.dropped.get(split, {}).items():
            print(f"  {'':8} {len(ids):>8,} dropped: {reason}")
    print(f"  licence  {manifest.license}; from {'; '.join(manifest.sources)}")


def show_progress(items: Iterable[Any], description: str) -> Iterable[Any]:
    """Pass items through under a progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description=description, transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty())

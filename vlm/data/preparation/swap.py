"""Folders that are written beside their place and put there in one step, so that a folder of the final name is always complete. Knows nothing of what is in them.

While `<name>` is made it is `.<name>.tmp`, and what it replaces is `.<name>.old` for a moment. Whoever makes it holds a lock (`vlm.data.preparation.locks`).
"""

import shutil
from pathlib import Path


def unfinished(folder: Path) -> Path:
    """Where a folder is written."""
    return folder.with_name(f".{folder.name}.tmp")


def recover(folder: Path) -> None:
    """Clear away what a process left that was killed; a folder that it had put aside comes back."""
    old = put_aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(unfinished(folder), ignore_errors=True)


def put_in_place(folder: Path) -> None:
    """Give the unfinished folder, which is complete now, its name; what had the name before is deleted."""
    old = put_aside(folder)
    if folder.exists():
        folder.rename(old)
    unfinished(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def put_aside(folder: Path) -> Path:
    """Where what a folder replaces is for a moment."""
    return folder.with_name(f".{folder.name}.old")

"""Files that pip packages ship (weights, pictures) and the folder where what is converted from them is kept. Knows no model and no dataset."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vlm.errors import CheckpointError, MissingPackageError


def cache_dir() -> Path:
    """Folder for converted weights: $VLM_CACHE, or ~/.cache/vlm."""
    return Path(os.environ.get("VLM_CACHE") or Path.home() / ".cache" / "vlm")


def package_file(package: str, relative: str, *, extra: str | None = None, install: str | None = None) -> Path:
    """Path of a file that an installed pip package ships, without importing the package.

    Args:
        package: Name of the distribution.
        relative: Path of the file below site-packages; a folder is answered as well.
        extra: The extra of `vlm` that installs the package.
        install: The install line, where no extra does.

    Raises:
        MissingPackageError: If the package is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError(package, needed_for=f"The file {relative}", extra=extra, install=install) from None
    return Path(str(distribution.locate_file(relative)))


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the pinned one.

    Raises:
        CheckpointError: If the file is missing or differs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist. Reinstall the package that ships it.")
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != expected:
        raise CheckpointError(f"{path} has SHA-256 {seen}, expected {expected}. Reinstall the package that ships it.")


def converted(name: str, convert: Callable[[Path], None]) -> Path:
    """A folder of converted files, made once.

    Args:
        name: Folder name in the cache; put the version of the conversion into it.
        convert: Writes the files into the folder that it is given; a folder that it leaves half-written is never taken for the result.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".tmp", dir=target.parent))
    try:
        convert(building)
        building.rename(target)
    except OSError:
        if not target.is_dir():  # another process may have finished first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target

"""What has the place of a prepared folder before it is made: whether it may be replaced, and what it holds. Deletes and writes nothing.

Only a folder that vlm wrote may be replaced, and an empty one; never one that holds the data that is being read.
"""

from collections.abc import Sequence
from pathlib import Path

from vlm.data.manifest import MANIFEST, Manifest
from vlm.data.preparation.swap import put_aside, unfinished
from vlm.errors import ConfigError, DataFormatError

FIELD = b'"format_version"'  # of every manifest of vlm; other programs write files of the name manifest.json as well


def manifest_before(folder: Path, *, overwrite: bool, sources: Sequence[Path], elsewhere: str) -> Manifest | None:
    """The manifest of what is at the place of a folder, or None if the folder may be made.

    Args:
        folder: The place.
        overwrite: Whether what is there shall be replaced.
        sources: Files and folders that are read, and must stay.
        elsewhere: The arguments that choose another place, for messages: "--root-dir or --name".

    Raises:
        ConfigError: If what is there may not be replaced, or cannot be used and shall not be replaced.
    """
    ours = folder.is_dir() and _is_ours(folder)
    if ours and not overwrite:
        return _read(folder)
    for place in (folder, unfinished(folder), put_aside(folder)):
        for source in sources:
            if source.resolve().is_relative_to(place.resolve()):
                raise ConfigError(f"{source} is read and would be deleted when {folder} is written; choose another {elsewhere}.")
    if folder.is_file() or (folder.is_dir() and not ours and any(folder.iterdir())):
        raise ConfigError(f"{folder} was not written by vlm (there is no {MANIFEST} of vlm in it) and is left as it is; choose another {elsewhere}.")
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link to {folder.resolve()}, which is not replaced; remove the link, or choose another {elsewhere}.")
    return None


def _is_ours(folder: Path) -> bool:
    """Whether vlm wrote a folder, which may be damaged since."""
    path = folder / MANIFEST
    return path.is_file() and (any(folder.glob("samples-*.parquet")) or FIELD in path.read_bytes())


def _read(folder: Path) -> Manifest:
    try:
        return Manifest.read(folder)
    except DataFormatError as error:
        raise ConfigError(f"{folder} exists already and is not usable: {error} Add --overwrite to replace it.") from None

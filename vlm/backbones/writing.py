"""Folders of weights that are there whole or not at all, and weights in files with the permissions that the user's umask gives. Knows no layout."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from vlm.errors import CheckpointError

GIGABYTE = 1e9


def refuse_existing(out: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        CheckpointError: If the folder exists.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists. Name a folder that does not exist yet.")


def refuse_full_disk(folder: Path, num_bytes: int) -> None:
    """Make sure that the disk of a folder has so much space left.

    Raises:
        CheckpointError: If it has less.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"{num_bytes / GIGABYTE:.3g} GB are to be written, and the disk of {folder.absolute().parent} has {free / GIGABYTE:.3g} GB left. "
            "Free space, or name another folder."
        )


@contextmanager
def new_folder(out: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when all has gone well, and is removed otherwise.

    Args:
        out: The folder, which must not exist.
        num_bytes: What will be written into it at least, in bytes.

    Raises:
        CheckpointError: If it exists, the disk has not so much space, or it cannot be written.
    """
    refuse_existing(out)
    building = out.with_name(out.name + ".tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        refuse_full_disk(building, num_bytes)
        yield building
        mode = new_file_mode(building)
        for path in building.rglob("*.safetensors"):  # those that a library wrote
            path.chmod(mode)
        building.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out} could not be written: {' '.join(str(error).split())[:300]}. Free space, or name another folder.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; the library alone would let nobody but its owner read it.

    Raises:
        OSError, SafetensorError: If it cannot be written.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(new_file_mode(path.parent))


@contextmanager
def without_remarks() -> Iterator[None]:
    """Mute what libraries say of each file that they write, under a name that it will not keep; warnings pass."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def new_file_mode(folder: Path) -> int:
    """The permissions that any new file of this user gets in a folder; Python cannot ask for the umask without changing it for all threads."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        probe = Path(place) / "probe"
        probe.touch()
        return probe.stat().st_mode & 0o777

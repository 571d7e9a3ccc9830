"""Checkpoints on the Hugging Face hub: repositories that hold the files of a checkpoint folder. Knows no other layout, and nothing of what is in the files."""

import re
from pathlib import Path

from vlm.errors import CheckpointError

HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_hub_id(name: str | Path, *, run_root: Path) -> bool:
    """True for `owner/name`, or `owner/name@revision`, where no folder of that owner's name makes it a path."""
    if isinstance(name, Path) or HUB_ID.fullmatch(name) is None:
        return False
    owner = Path(name.split("/")[0])
    return owner != run_root and not owner.is_dir()


def fetch_checkpoint(name: str, *, files: tuple[str, ...]) -> Path:
    """The folder of a repository's files, downloaded unless it is in the hub's cache.

    Args:
        name: `owner/name`, or `owner/name@revision` for a branch, tag or commit.
        files: Files that a checkpoint consists of; the first one tells that the repository is one.

    Raises:
        CheckpointError: If the hub cannot be reached and the cache does not have it, there is no such repository, or it has another layout.
    """
    from huggingface_hub import snapshot_download

    found = HUB_ID.fullmatch(name)
    assert found is not None, name
    try:
        folder = Path(snapshot_download(found["repository"], revision=found["revision"], allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds; a first line says what happened
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{name!r} is no run or folder here, and as a hub id it could not be fetched ({said.rstrip('.')}). "
            "Check the name, the network and your login to the hub, or download the repository and give its folder."
        ) from error
    missing = [file for file in files if not (folder / file).is_file()]
    if files[0] in missing:
        raise CheckpointError(
            f"The hub repository {name!r} has no {files[0]}, so it is no checkpoint of vlm. Turn other layouts into one with `vlm import` (`vlm import --help`)."
        )
    if missing:
        raise CheckpointError(f"The hub repository {name!r} lacks {', '.join(missing)}. Upload the whole checkpoint folder.")
    return folder

"""Single tensors out of a checkpoint in the layout of transformers, a folder or a hub id, without building its model. Knows no family."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.backbones.loading import is_folder
from vlm.errors import WEIGHTS_REMEDY, CheckpointError

SINGLE = ("model.safetensors", "pytorch_model.bin")  # in this order; an index of shards has the same name and `.index.json`


def read_tensors(source: str | Path, wanted: Callable[[str], bool], *, revision: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names are wanted, as they are stored; others are not read from a safetensors file.

    Args:
        source: A folder, a hub id, or a file.
        wanted: Says of a name whether its tensor is.
        revision: Commit or branch at the hub; empty for the newest.

    Raises:
        CheckpointError: If there are no weights, or they cannot be read; in one line.
    """
    with _one_line(source):
        return {name: tensor for path in _files(source, revision) for name, tensor in _tensors(path, wanted)}


def _tensors(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in file.keys() if wanted(name))  # noqa: SIM118 (no mapping)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)  # not mapped: old files cannot be
        yield from ((name, tensor) for name, tensor in weights.items() if wanted(name))


def _files(source: str | Path, revision: str) -> list[Path]:
    """The file of all tensors, or the shards that an index names."""
    if Path(source).is_file():
        return [Path(source)]
    for name in SINGLE:
        if path := _file(source, name, revision):
            return [path]
        if index := _file(source, f"{name}.index.json", revision):
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return [_shard(source, name, revision) for name in names]
    raise CheckpointError(f"There are no weights at {str(source)!r}, neither {' nor '.join(SINGLE)}. {WEIGHTS_REMEDY}")


def _shard(source: str | Path, name: str, revision: str) -> Path:
    if path := _file(source, name, revision):
        return path
    raise CheckpointError(f"{source} lacks {name}, which its index names. {WEIGHTS_REMEDY}")


def _file(source: str | Path, name: str, revision: str) -> Path | None:
    from transformers.utils.hub import cached_file

    path = cached_file(str(source), name, revision=revision or None, local_files_only=is_folder(source), _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


@contextmanager
def _one_line(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"Weights of {str(source)!r} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}") from error

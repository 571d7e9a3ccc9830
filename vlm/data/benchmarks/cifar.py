"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) out of the published archives of Python pickles, packed or as torchvision leaves them unpacked.

Class names are those of the archive, underscores included, as CLIP_benchmark has them. Pickles can run code when they are read: these are read by an
unpickler that makes arrays and plain values, and nothing else.
"""

import io
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm.data.benchmarks.base import BenchmarkSpec, Labelled, Picture
from vlm.data.benchmarks.prompts import read_names, refuse_equal_names
from vlm.errors import DataFormatError, UnknownNameError

SIDE = 32


@dataclass(frozen=True)
class _Layout:
    """How an archive is laid out: files of each split, and the keys of labels and of their names."""

    name: str
    archive: str
    folder: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    labels: bytes
    names: bytes


CIFAR10 = _Layout(
    "cifar10",
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    {"test": ("test_batch",), "train": tuple(f"data_batch_{i}" for i in range(1, 6))},
    "batches.meta",
    b"labels",
    b"label_names",
)
CIFAR100 = _Layout(
    "cifar100", "cifar-100-python.tar.gz", "cifar-100-python", {"test": ("test",), "train": ("train",)}, "meta", b"fine_labels", b"fine_label_names"
)


def open_cifar(layout: _Layout, path: Path, split: str = "test", names: Path | None = None) -> Labelled:
    """One split.

    Args:
        layout: Which of the two.
        path: The `.tar.gz`, the folder unpacked from it, or the folder that either lies in (torchvision's root).
        split: test or train.
        names: File of class names; None for those of the archive.

    Raises:
        UnknownNameError: If there is no such split.
        DataFormatError: If the files are missing or are not CIFAR's.
    """
    if split not in layout.splits:
        raise UnknownNameError(f"split of {layout.name}", split, layout.splits)
    *batches, meta = [_load(content, path) for content in _read(layout, path, [*layout.splits[split], layout.meta])]
    try:
        keys = [key.decode() for key in meta[layout.names]]
        pixels = np.concatenate([np.asarray(batch[b"data"], dtype=np.uint8) for batch in batches]).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        labels = torch.tensor([label for batch in batches for label in batch[layout.labels]])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataFormatError(f"{path} is not {layout.name} as it is published: {type(error).__name__} {error}.") from None
    if len(labels) != len(pixels) or int(labels.max()) >= len(keys):
        raise DataFormatError(f"{path} is cut: {len(pixels)} pictures, {len(labels)} labels up to {int(labels.max())}, {len(keys)} class names.")
    class_names = read_names(names, keys) if names else tuple(keys)
    refuse_equal_names(class_names, where=names or path)
    return Labelled(layout.name, [Picture(f"{split}/{i}", image) for i, image in enumerate(pixels)], labels, class_names)


def _read(layout: _Layout, path: Path, files: Sequence[str]) -> list[bytes]:
    """The contents of files of the archive."""
    for folder in (path, path / layout.folder):
        if all((folder / file).is_file() for file in files):
            return [(folder / file).read_bytes() for file in files]
    archive = path if path.is_file() else path / layout.archive
    if not archive.is_file():
        raise DataFormatError(f"{path} holds neither {layout.archive} nor {layout.folder}/{files[0]}, which {layout.name} is read from.")
    try:
        with tarfile.open(archive) as packed:
            return [_member(packed, f"{layout.folder}/{file}") for file in files]
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DataFormatError(f"{archive} is not the archive {layout.archive}: {error}.") from None


def _member(packed: tarfile.TarFile, name: str) -> bytes:
    file = packed.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


class _PlainUnpickler(pickle.Unpickler):
    """Arrays of numbers, lists, dictionaries and strings."""

    def find_class(self, module: str, name: str) -> Any:
        """What arrays are made by; the module's name is that of the numpy of the year."""
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.array([]).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return __import__("_codecs").encode
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR")


def _load(content: bytes, path: Path) -> dict[bytes, Any]:
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise DataFormatError(f"{path} holds a file that is no pickle of CIFAR's: {error}.") from None


SPECS = {
    "cifar10": BenchmarkSpec(
        open=partial(open_cifar, CIFAR10), templates="cifar", split="test", description="CIFAR-10: 10,000 pictures, 10 classes", aliases=("cifar-10",)
    ),
    "cifar100": BenchmarkSpec(
        open=partial(open_cifar, CIFAR100),
        templates="cifar",
        split="test",
        description="CIFAR-100: 10,000 pictures, 100 classes",
        aliases=("cifar-100",),
    ),
}

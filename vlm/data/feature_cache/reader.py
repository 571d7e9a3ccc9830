"""A finished feature cache, mapped into memory: rows by number in any order, and numbers by id. Knows no encoder and no batch of pairs."""

import ctypes
import math
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlm.data.feature_cache.manifest import INDEX, REMEDY, FeatureManifest, size_of
from vlm.data.manifest import file_sha256
from vlm.errors import DataFormatError

MAP_FIXED = 0x10  # on Linux and macOS alike; Python's mmap does not name it


class FeatureCache:
    """Feature vectors on disk, opened for reading.

    All shards are mapped one behind the other, so a batch is one gather from one table: sorting a batch by shard first, and putting it back in order,
    costs more than the gather itself (`benchmarks/feature_cache.md`). Processes share the pages; a copy that is sent to a DataLoader worker opens the
    files anew.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any] | None = None):
        """Open a cache; no vector is read yet.

        Args:
            folder: Where `write_features` wrote.
            key: What the features must be of; None to take them as they are.

        Raises:
            DataFormatError: If the folder is no feature cache, is not finished, or a file has another size than its manifest says.
            ConfigError: If the features are those of another key.
        """
        self.folder = Path(folder)
        self.manifest = FeatureManifest.read(self.folder)
        if key is not None:
            self.manifest.refuse_other_key(self.folder, key)
        _refuse_incomplete(self.folder, self.manifest)
        memory, self._gap = _map_shards(self.folder, self.manifest)
        self._table = _as_table(memory, self.manifest)
        self._index = _read_index(self.folder)
        self._row_of_item = self._index.get("rows")

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself."""
        return FeatureCache, (self.folder,)

    def __len__(self) -> int:
        """Number of items."""
        return self.manifest.items

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.manifest.width

    @property
    def dtype(self) -> torch.dtype:
        """How the vectors are stored, and what `rows` returns."""
        return self.manifest.torch_dtype

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """Mean of each column over the vectors, each counted once however many items share it; fp32."""
        return torch.tensor(self.manifest.mean, dtype=torch.float32)

    @property
    def std(self) -> Float[Tensor, " D"]:
        """Standard deviation of each column over the vectors, each counted once; fp32."""
        return torch.tensor(self.manifest.std, dtype=torch.float32)

    def rows(self, indices: Int[Tensor, " B"] | Int[np.ndarray, " B"] | Sequence[int]) -> Float[Tensor, "B D"]:
        """The vectors of some items, in the order asked for, as they are stored.

        Args:
            indices: Numbers of the items, from 0; may repeat.

        Raises:
            IndexError: If a number is negative or not below the number of items.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"Items {int(wanted.min())} to {int(wanted.max())} asked for; {self.folder} holds {len(self)}, from 0.")
        if self._row_of_item is not None:
            wanted = self._row_of_item[wanted]
        if self._gap:
            wanted = wanted + wanted // self.manifest.shard_rows * self._gap
        return self._table.index_select(0, wanted)

    def rows_of(self, ids: Sequence[str]) -> Int[Tensor, " B"]:
        """The numbers of the items with these ids, for `rows`.

        Raises:
            DataFormatError: If an id is unknown, or the cache was written without ids.
        """
        stored, order = self._ids
        wanted = np.array([name.encode("utf-8", "surrogatepass") for name in ids], dtype=np.bytes_)
        places = np.minimum(np.searchsorted(stored, wanted, sorter=order), len(stored) - 1)
        found = order[places]
        unknown = np.flatnonzero(stored[found] != wanted)
        if len(unknown):
            raise DataFormatError(
                f"{self.folder} has no item {ids[unknown[0]]!r} ({len(unknown)} of {len(ids)} ids are unknown; it has {self._name(0)!r}, ...). "
                "Write the features of these items as well, or leave them out."
            )
        return torch.from_numpy(found.astype(np.int64))

    @property
    def ids(self) -> Sequence[str]:
        """Ids of all items, in their order.

        Raises:
            DataFormatError: If the cache was written without ids.
        """
        return [self._name(item) for item in range(len(self))]

    def _name(self, item: int) -> str:
        return self._ids[0][item].decode("utf-8", "surrogatepass")

    @cached_property
    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids as bytes, in the order of the items, and what sorts them."""
        if "ids" not in self._index:
            raise DataFormatError(f"The features in {self.folder} were written without ids. Write them again with --overwrite, with ids.")
        letters = self._index["ids"].numpy()
        return letters.view(f"S{letters.shape[1]}").squeeze(1), self._index["ids_order"].numpy()

    def verify(self) -> None:
        """Compare the hash of every file with the manifest; reads all of them.

        Raises:
            DataFormatError: If a file was altered.
        """
        expected = {shard.file: shard.sha256 for shard in self.manifest.shards} | {INDEX: self.manifest.index_sha256}
        altered = [name for name, sha256 in expected.items() if file_sha256(self.folder / name) != sha256]
        if altered:
            raise DataFormatError(f"{self.folder / altered[0]} was altered: its SHA-256 is not the one of its manifest. Delete that file. {REMEDY}")


def _refuse_incomplete(folder: Path, manifest: FeatureManifest) -> None:
    if manifest.num_finished < len(manifest.shards):
        raise DataFormatError(f"{folder} is not finished: {manifest.num_finished} of {len(manifest.shards)} shards stand. {REMEDY}")
    for name, size in [(shard.file, shard.size) for shard in manifest.shards] + [(INDEX, manifest.index_size)]:
        seen = size_of(folder / name)
        if seen != size:
            problem = "is missing" if seen < 0 else f"has {seen:,} bytes, its manifest says {size:,}"
            raise DataFormatError(f"{folder / name} {problem}. {REMEDY}")


def _map_shards(folder: Path, manifest: FeatureManifest) -> tuple[np.ndarray, int]:
    """The bytes of all shards in one piece of read-only memory, and how many rows lie unused behind each full shard.

    A file can be mapped to the start of a page only. Where a shard does not end with a page, rows without a file fill the gap; they are never read.
    """
    row_bytes = manifest.width * manifest.torch_dtype.itemsize
    unit = math.lcm(mmap.PAGESIZE, row_bytes) // row_bytes
    stride = -(-manifest.shard_rows // unit) * unit  # rows from the start of one shard to the start of the next
    reserved = mmap.mmap(-1, len(manifest.shards) * stride * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    memory = np.frombuffer(reserved, dtype=np.uint8)
    for i, shard in enumerate(manifest.shards):
        _map_over(memory.ctypes.data + i * stride * row_bytes, shard.rows * row_bytes, folder / shard.file)
    return memory, stride - manifest.shard_rows


def _map_over(address: int, size: int, path: Path) -> None:
    """Map the first bytes of a file over reserved memory, which is given back as a whole when the reservation is."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    try:
        with path.open("rb") as file:
            mapped = libc.mmap(address, size, mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_FIXED, file.fileno(), 0)
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read ({error.strerror}). Make it readable.") from None
    if mapped != address:
        raise DataFormatError(f"{path} cannot be mapped into memory ({os.strerror(ctypes.get_errno())}). Put the features on a local disk.")


def _as_table(memory: np.ndarray, manifest: FeatureManifest) -> Float[Tensor, "rows D"]:
    """The memory as rows; NumPy does not know bfloat16, so torch names the dtype."""
    numbers = memory.view(np.int16 if manifest.torch_dtype.itemsize == 2 else np.int32).reshape(-1, manifest.width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # nobody gets this tensor to write to
        return torch.from_numpy(numbers).view(manifest.torch_dtype)


def _read_index(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / INDEX)
    except (OSError, SafetensorError) as error:
        raise DataFormatError(f"{folder / INDEX} cannot be read ({error}). Delete that file. {REMEDY}") from None

"""Encodes items once and writes their vectors shard by shard. Knows no encoder: `encode` is a callable, and its key says what it is.

The unit of work is a shard: written under a temporary name, flushed, read back, renamed, and only then recorded. So a run may be killed at any moment,
and ranks need not talk to each other. A shard's batches depend on its items alone, so neither kills nor the number of ranks change a bit.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from vlm.data.feature_cache.manifest import (
    DTYPES,
    INDEX,
    LOCK,
    FeatureManifest,
    Shard,
    key_sha256,
    plain_key,
    refuse_differences,
    refuse_foreign_files,
    size_of,
)
from vlm.data.feature_cache.plan import Plan
from vlm.data.manifest import MANIFEST, file_sha256
from vlm.data.preparation.locks import locked
from vlm.errors import ConfigError, DataFormatError
from vlm.types import World

log = logging.getLogger(__name__)

SHARD_ROWS = 65_536  # 67 MB at 512 dimensions in fp16, 537 MB at 4,096: what a kill costs, and what a rank holds in memory
ROWS_AT_ONCE = 4_096  # of a shard in float64

Encode = Callable[[list[Any]], Tensor]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # passes batches through and shows how far it is; gets the number of batches


def write_features(
    folder: Path,
    items: Sequence[Any],
    encode: Encode,
    *,
    key: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    width: int | None = None,
    ids: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    shard_rows: int = SHARD_ROWS,
    world: World | None = None,
    progress: Progress = lambda batches, _: batches,
) -> None:
    """Encode every item once and store the vectors as they are, not normalized; shards that stand already are kept.

    With several ranks, each writes its share of the shards; the cache can be opened when all have returned.

    Args:
        folder: Where the cache is or will be.
        items: What is encoded, in order; cheap to hold, as texts, paths and numbers are. Equal ones are encoded once.
        encode: From a list of items to one vector each, `Float[Tensor, "B D"]` on any device; called without gradients, longest items first.
        key: Everything that changes the numbers: encoder, adapters, template, pooling, precision, image policy, dataset.
        dtype: How the vectors are stored: float16, bfloat16 or float32.
        width: Numbers of a vector; None to take what `encode` returns.
        ids: A name for each item, all different, for `FeatureCache.rows_of`.
        lengths: Tokens of each item, as `encode` sees them; without them, texts are sorted by their letters.
        batch_size: Most items that `encode` gets at once.
        batch_tokens: Most tokens that it gets at once, padding to the longest item included; needs `lengths`.
        shard_rows: Vectors of a shard.
        world: The processes that share the work; None: this one alone.
        progress: Shows how far this rank is.

    Raises:
        ConfigError: If the folder holds something else or features of another key, of other items or in another dtype, another process writes the same
            shard, the disk is full, or the settings contradict each other.
        DataFormatError: If `encode` returns anything but one finite vector an item, or a value that `dtype` cannot hold; the item is named.
    """
    world = world or World.single()
    plan = Plan.of(items, ids, lengths, shard_rows=shard_rows, batch_size=batch_size, batch_tokens=batch_tokens)
    with _disk_errors(folder):
        manifest = _begin(folder, plan, plain_key(key), _name_of(dtype))
    plan = replace(plan, shard_rows=manifest.shard_rows)
    missing = [i for i in range(world.rank, len(manifest.shards), world.size) if not manifest.shards[i].stands(folder)]
    encoder = _Encoder(encode, plan, dtype, width or manifest.width or None)
    _write_shards(folder, [(i, manifest.shards[i]) for i in missing], encoder, progress)


def _name_of(dtype: torch.dtype) -> str:
    names = [name for name, known in DTYPES.items() if known == dtype]
    if not names:
        raise ConfigError(f"Features are stored as {', '.join(DTYPES)}; got {dtype}.")
    return names[0]


def _begin(folder: Path, plan: Plan, key: dict[str, Any], dtype: str) -> FeatureManifest:
    """The manifest of the folder, which is made if it is not there."""
    wanted = FeatureManifest(
        key=key,
        key_sha256=key_sha256(key),
        dtype=dtype,
        items=len(plan.items),
        items_sha256=plan.sha256(),
        rows=len(plan.firsts),
        shard_rows=plan.shard_rows,
        index_size=len(plan.index),
        index_sha256=hashlib.sha256(plan.index).hexdigest(),
        shards=[Shard(f"features-{i:05}.bin", len(plan.items_of_shard(i))) for i in range(plan.num_shards)],
    )
    if not (folder / MANIFEST).exists():
        refuse_foreign_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            if not (folder / MANIFEST).exists():  # another rank may have been first
                wanted.write(folder)
    found = FeatureManifest.read(folder)
    refuse_differences(folder, found.identity(), wanted.identity())
    if found.shard_rows != wanted.shard_rows:
        log.warning("warning: the shards of %s have %d rows and keep them; shard_rows=%d is not used", folder, found.shard_rows, plan.shard_rows)
    if size_of(folder / INDEX) != found.index_size:
        _write_index(folder, plan.index)
    return found


def _write_index(folder: Path, contents: bytes) -> None:
    building = folder / f"{INDEX}.tmp"
    with FileLock(folder / LOCK):  # other ranks write the same
        _write_flushed(building, contents)
        building.replace(folder / INDEX)


def _write_shards(folder: Path, shards: Sequence[tuple[int, Shard]], encoder: "_Encoder", progress: Progress) -> None:
    """Encode shards, given with their numbers, one after the other."""
    by_number = dict(shards)
    work = [(i, batch) for i in by_number for batch in encoder.plan.batches(i)]
    for i, batches in groupby(progress(work, len(work)), key=itemgetter(0)):
        with ExitStack() as held:
            with _disk_errors(folder):
                held.enter_context(locked([folder / f".{by_number[i].file}.lock"], work=f"writes a shard of {folder}"))
            rows = encoder.shard(i, [batch for _, batch in batches])
            with _disk_errors(folder):
                _record(folder, i, _store(rows, folder, by_number[i]), width=rows.shape[1])


@dataclass(frozen=True)
class _Encoder:
    """From the items of a shard to its vectors, in the dtype of the cache."""

    encode: Encode
    plan: Plan
    dtype: torch.dtype
    width: int | None

    def shard(self, number: int, batches: Sequence[np.ndarray]) -> Float[Tensor, "B D"]:
        """The vectors of a shard; each batch holds positions in it."""
        items = self.plan.items_of_shard(number)
        rows: Tensor | None = None
        for batch in batches:
            vectors = self._vectors(items[batch], self.width if rows is None else rows.shape[1])
            if rows is None:
                rows = torch.empty(len(items), vectors.shape[1], dtype=self.dtype)
            rows[torch.from_numpy(batch)] = vectors
        assert rows is not None
        return rows

    def _vectors(self, items: np.ndarray, width: int | None) -> Float[Tensor, "B D"]:
        with torch.inference_mode():
            vectors = self.encode([self.plan.items[i] for i in items])
        shape = tuple(vectors.shape)
        if len(shape) != 2 or shape[0] != len(items) or shape[1] != (width or shape[1]) or not vectors.is_floating_point():
            wanted = f"[{len(items)}, {width or 'width'}]"
            raise DataFormatError(f"The encoder returned {vectors.dtype} of shape {list(shape)} for {len(items)} items; wanted floats of {wanted}.")
        stored = vectors.to("cpu", self.dtype)
        bad = (~stored.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            self._refuse(vectors[bad[0]], int(items[bad[0]]))
        return stored

    def _refuse(self, vector: Float[Tensor, " D"], item: int) -> None:
        name = self.plan.name(item)
        if not vector.isfinite().all():
            raise DataFormatError(f"{name}: the encoder returned NaN or infinity. Check its weights and precision, or leave the item out.")
        most = f"{torch.finfo(self.dtype).max:,.0f}"
        kind = str(self.dtype).removeprefix("torch.")
        raise DataFormatError(
            f"{name}: the encoder returned {float(vector.abs().max()):,.0f}, and {kind} holds {most} at most. Store the features as bfloat16 or float32."
        )


def _store(rows: Float[Tensor, "B D"], folder: Path, shard: Shard) -> Shard:
    """Write the file of a shard: under a temporary name, flushed, read back, renamed."""
    path = folder / shard.file
    building = path.with_name(f"{path.name}.tmp")
    moments, norms = _moments(rows)
    contents = (rows.view(torch.uint8).numpy().data, moments.tobytes())
    try:
        sha256 = _write_flushed(building, *contents)
        if file_sha256(building) != sha256:
            raise OSError(errno.EIO, "the file reads back other than it was written; the disk may be faulty", str(path))
        building.replace(path)
        _flush_folder(folder)
    finally:
        building.unlink(missing_ok=True)
    return replace(shard, finished=True, size=size_of(path), sha256=sha256, min_norm=float(norms.min()), max_norm=float(norms.max()))


def _moments(rows: Float[Tensor, "B D"]) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sums of squares of the columns, float64, shape [2, D]; and the length of each row. By NumPy: its order of sums knows no threads."""
    moments, norms = np.zeros((2, rows.shape[1])), []
    for part in rows.split(ROWS_AT_ONCE):
        values = part.double().numpy()
        squares = values**2
        moments += values.sum(axis=0), squares.sum(axis=0)
        norms.append(np.sqrt(squares.sum(axis=1)))
    return moments, np.concatenate(norms)


def _record(folder: Path, number: int, shard: Shard, *, width: int) -> None:
    """Write into the manifest that a shard stands, and the statistics if it is the last."""
    with FileLock(folder / LOCK):
        manifest = FeatureManifest.read(folder)
        if manifest.width not in (0, width):
            raise DataFormatError(f"The encoder returned vectors of width {width}; those in {folder} have {manifest.width}. Check its key.")
        shards = [shard if i == number else other for i, other in enumerate(manifest.shards)]
        manifest = replace(manifest, shards=shards, width=width)
        if all(shard.stands(folder) for shard in shards):
            manifest = replace(manifest, **_statistics(folder, manifest))
        manifest.write(folder)


def _statistics(folder: Path, manifest: FeatureManifest) -> dict[str, Any]:
    """Mean, deviation and extreme norms over all shards, in their order."""
    moments = np.zeros((2, manifest.width))
    for shard in manifest.shards:
        offset = shard.rows * manifest.width * manifest.torch_dtype.itemsize
        moments += np.fromfile(folder / shard.file, dtype=np.float64, offset=offset).reshape(2, -1)
    mean, mean_square = moments / manifest.rows
    std = np.sqrt(np.maximum(mean_square - mean**2, 0))
    norms = {"min_norm": min(shard.min_norm for shard in manifest.shards), "max_norm": max(shard.max_norm for shard in manifest.shards)}
    return {"mean": mean.astype(np.float32).tolist(), "std": std.astype(np.float32).tolist()} | norms


def _write_flushed(path: Path, *contents: bytes | memoryview) -> str:
    """Write a file through to the disk; returns the hash of what was written."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in contents:
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Write names of files through to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Say what to do when a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"Cannot write features to {folder} ({error.strerror or error}). Free space there or make it writable, or choose another folder. "
            "Shards that stand are kept: the same command goes on after them."
        ) from error

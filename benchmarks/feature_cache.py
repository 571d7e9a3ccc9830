"""How fast rows of a feature cache are read in random order, from the page cache, beside other ways to gather them from the same files.

    python benchmarks/feature_cache.py [--rows 1500000] [--width 512] [--batch 8192] [--repetitions 5]

The cache is written by `write_features` into a temporary folder (1.5 GB by default), which is removed at the end. Before anything is timed, every way is
compared with the vectors that were encoded, bit for bit. A pass reads every row once, in an order of its own; the first pass fills the page cache.
`rows_per_second` is the better of one thread and all: on a machine with other work, a batch waits for the slower of its threads.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vlm.data.feature_cache import FeatureCache, write_features

BLOCK = 65_521  # different vectors; a prime, so that equal ones lie in different places of the shards
ALTERNATIVE_BATCHES = 40  # that the other ways are timed with

Gather = Callable[[Tensor], Tensor]


def main() -> None:
    """Write a cache, compare and time the ways to read it, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8_192)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    vectors = torch.randn(BLOCK, settings.width, generator=torch.Generator().manual_seed(0)).half()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "features"
        start = time.perf_counter()
        write_features(folder, range(settings.rows), lambda items: vectors[torch.tensor(items) % BLOCK], key={}, batch_size=65_536)
        seconds = time.perf_counter() - start
        cache = FeatureCache(folder)
        others = alternatives(cache)
        for name, gather in {"ours": cache.rows, **others}.items():
            wanted = torch.randint(settings.rows, (5_000,))
            assert torch.equal(gather(wanted), vectors[wanted % BLOCK]), name
        report(settings, cache, others, write_seconds=seconds)


# Other ways to gather rows from several mapped files, each from and to the same things as ours


def alternatives(cache: FeatureCache) -> dict[str, Gather]:
    """Each by name; the shards are mapped one by one, as NumPy does it."""
    manifest = cache.manifest
    width, per_shard = cache.width, manifest.shard_rows
    arrays = [np.memmap(cache.folder / s.file, np.float16, "c", shape=(s.rows, width)) for s in manifest.shards]  # c: torch wants to own its memory
    tensors = [torch.from_numpy(array) for array in arrays]
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def sorted_parts(indices: Tensor) -> tuple[Tensor, Tensor, Sequence[tuple[int, slice]]]:
        """Sorted rows, their places in the batch, and what of them lies in each shard."""
        rows, order = indices.sort()
        ends = torch.bucketize(torch.arange(len(tensors) + 1) * per_shard, rows).tolist()
        return rows % per_shard, order, [(i, slice(ends[i], ends[i + 1])) for i in range(len(tensors)) if ends[i] < ends[i + 1]]

    def by_torch(indices: Tensor) -> Tensor:
        rows, order, parts = sorted_parts(indices)
        found = torch.empty(len(rows), width, dtype=torch.float16)
        for i, part in parts:
            torch.index_select(tensors[i], 0, rows[part], out=found[part])
        return put_back(found, order)

    def by_numpy_take(indices: Tensor) -> Tensor:
        rows, order, parts = sorted_parts(indices)
        found = np.empty((len(rows), width), np.float16)
        for i, part in parts:
            np.take(arrays[i], rows[part].numpy(), axis=0, out=found[part], mode="clip")
        return put_back(torch.from_numpy(found), order)

    def by_numpy_scattered(indices: Tensor, each: Callable[..., Iterable[None]]) -> Tensor:
        rows, order, parts = sorted_parts(indices)
        found = np.empty((len(rows), width), np.float16)

        def one(at: tuple[int, slice]) -> None:
            found[order[at[1]].numpy()] = arrays[at[0]][rows[at[1]].numpy()]

        list(each(one, parts))
        return torch.from_numpy(found)

    def one_by_one(indices: Tensor) -> Tensor:
        return torch.stack([tensors[i // per_shard][i % per_shard] for i in indices.tolist()])

    return {
        "one table, sorted first, put back": lambda indices: sorted_first(cache, indices),
        "one table, NumPy take": lambda indices: torch.from_numpy(np.take(cache._table.numpy(), indices.numpy(), axis=0)),
        "by shard, sorted, torch, put back": by_torch,
        "by shard, sorted, NumPy take, put back": by_numpy_take,
        "by shard, sorted, NumPy, scattered": partial(by_numpy_scattered, each=map),
        "by shard, sorted, NumPy threads, scattered": partial(by_numpy_scattered, each=pool.map),
        "row by row, stacked": one_by_one,
    }


def put_back(found: Tensor, order: Tensor) -> Tensor:
    """Sorted rows in the order that was asked for."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return found.index_select(0, inverse)


def sorted_first(cache: FeatureCache, indices: Tensor) -> Tensor:
    """Through sorted numbers, in which a disk would be read forwards."""
    rows, order = indices.sort()
    return put_back(cache.rows(rows), order)


# The measurements


def rows_per_second(
    gather: Gather, num_rows: int, batch: int, *, repetitions: int, batches: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Rates of passes over the rows in random order."""
    rates = []
    for repetition in range(repetitions + 1):
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(repetition))
        parts = order.split(batch)[:batches]
        start = clock()
        for part in parts:
            gather(part)
        rates.append(sum(map(len, parts)) / (clock() - start))
    return rates[1:]


def report(settings: argparse.Namespace, cache: FeatureCache, others: dict[str, Gather], *, write_seconds: float) -> None:
    """A table, then one line of JSON."""
    load = os.getloadavg()[0]
    rates = {"ours: one table, torch index_select": rows_per_second(cache.rows, len(cache), settings.batch, repetitions=settings.repetitions)}
    for name, gather in others.items():
        rates[name] = rows_per_second(gather, len(cache), settings.batch, repetitions=settings.repetitions, batches=ALTERNATIVE_BATCHES)
    small = rows_per_second(cache.rows, len(cache), 256, repetitions=settings.repetitions)
    torch.set_num_threads(1)
    one_thread = rows_per_second(cache.rows, len(cache), settings.batch, repetitions=settings.repetitions)
    cpu = rows_per_second(cache.rows, len(cache), settings.batch, repetitions=settings.repetitions, clock=time.process_time)
    rates |= {"ours, batches of 256": small, "ours, one thread": one_thread, "ours, one thread, by CPU time": cpu}
    table = Table(f"batches of {settings.batch}, {settings.threads} threads", "M rows/s", "min to max", title=f"{len(cache):,} x {cache.width}, fp16")
    for name, seen in rates.items():
        table.add_row(name, f"{statistics.median(seen) / 1e6:.2f}", f"{min(seen) / 1e6:.2f} to {max(seen) / 1e6:.2f}")
    Console(highlight=False, width=120).print(table)
    all_threads, *_ = rates.values()
    threads, ours = max((settings.threads, all_threads), (1, one_thread), key=lambda setting: statistics.median(setting[1]))
    size = sum(shard.size for shard in cache.manifest.shards)
    result = {
        "rows_per_second": round(statistics.median(ours)),
        "threads": threads,
        "rows_per_second_min": round(min(ours)),
        "rows_per_second_one_thread": round(statistics.median(one_thread)),
        "rows_per_second_all_threads": round(statistics.median(all_threads)),
        "rows_per_cpu_second": round(statistics.median(cpu)),
        "rows_per_second_batch_256": round(statistics.median(small)),
        "gigabytes_per_second": round(statistics.median(ours) * cache.width * 2 / 1e9, 2),
        "write_megabytes_per_second": round(size / write_seconds / 1e6),
        "rows": len(cache),
        "width": cache.width,
        "batch": settings.batch,
        "load": round(load, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How many tokens each sample makes, without opening a picture: what packing and grouping by length plan with.

Every sample is tokenized once; the numbers are kept beside the data in a file of int32, named by everything that changes them: rows, tokenizer, chat
template, image policy, longest length.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from vlm.assets import cache_dir
from vlm.data.image import layout_of
from vlm.data.reader import Part, SampleSet
from vlm.data.stream.examples import ChatExamples, Failure, guarded
from vlm.errors import DataFormatError

log = logging.getLogger(__name__)

FORMAT = 1  # of the file; raised when what is counted changes
BLOCK = 256  # samples that a worker counts at a time
PROBES = ((336, 336), (480, 640), (3000, 400))  # pictures whose tokens stand for those of all
COLUMNS = ("total", "shared", "images", "group")

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # passes blocks through and shows how far it is; gets the number of blocks


@dataclass(frozen=True)
class Lengths:
    """Numbers of each sample, int32, shape [samples] each.

    Attributes:
        total: Tokens, images expanded, after truncation; 0 for a sample that cannot be used.
        shared: Tokens from the start that other conversations about the same pictures have as well: up to the last image token, if nothing before it
            is trained; else 0.
        images: Image tokens.
        group: The first sample with the same pictures and the same shared tokens; the sample itself if there is none before it.
    """

    total: np.ndarray
    shared: np.ndarray
    images: np.ndarray
    group: np.ndarray


def measure(samples: SampleSet, examples: ChatExamples, *, skip: bool = False, num_workers: int = 0, progress: Progress | None = None) -> Lengths:
    """Lengths of all samples, read from the files beside the data, or counted and stored there.

    Args:
        samples: The opened data.
        examples: How samples become tokens.
        skip: True to leave out samples that cannot be used, and to say how many they are.
        num_workers: Processes that count; 0: this one.
        progress: Shows how far the counting is.

    Raises:
        DataFormatError: If a sample cannot be used, unless such samples are skipped.
    """
    tables, first = [], 0
    for part in samples.parts:
        stop = first + len(part.rows)
        table = _part(part, range(first, stop), examples, skip, num_workers, progress or (lambda blocks, _: blocks))
        unusable = first + np.flatnonzero(table[0] == 0)
        if len(unusable) and not skip:
            examples.measure(int(unusable[0]))  # raises, and says why
        if len(unusable):
            log.warning(
                "warning: %s: %d sample(s) cannot be used and are left out; the first: %s", part.origin, len(unusable), _why(examples, unusable)
            )
        tables.append(table)
        first = stop
    if len(tables) == 1:
        return Lengths(*tables[0])
    starts = np.cumsum([0, *(table.shape[1] for table in tables[:-1])])
    joined = np.concatenate([table + np.array([[0], [0], [0], [start]], dtype=np.int32) for table, start in zip(tables, starts, strict=True)], axis=1)
    return Lengths(*joined)


def _why(examples: ChatExamples, unusable: np.ndarray) -> str:
    """What is wrong with the first of some samples."""
    failure = guarded(lambda: examples.measure(int(unusable[0]), verify=True))
    return failure.message if isinstance(failure, Failure) else "it can be used now: delete the lengths-*.npy beside the data"


def fingerprint(examples: ChatExamples, verify: bool) -> str:
    """Hash of what turns a sample into tokens, and of how its pictures were looked at."""
    settings = {
        "format": FORMAT,
        "verify": verify,
        "tokenizer": hashlib.sha256(examples.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": asdict(examples.template),
        "versions": [importlib.metadata.version(package) for package in ("tokenizers", "transformers")],
        "tiles": [examples.policy.size, examples.policy.mode],
        "image_tokens": [examples.tokens_per_image(layout_of(*size, examples.policy)) for size in PROBES],
        "image_token_id": examples.image_token_id,
        "max_length": examples.max_length,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _part(part: Part, indices: range, examples: ChatExamples, verify: bool, num_workers: int, progress: Progress) -> np.ndarray:
    name = f"lengths-{part.key}-{fingerprint(examples, verify)}.npy"
    places = [part.home / name, cache_dir() / name]
    for path in places:
        if (table := _stored(path, len(indices))) is not None:
            return table
    log.info("%s: counting the tokens of %s samples, once for this tokenizer, template and image policy", part.origin, f"{len(indices):,}")
    table = _count(indices, examples, verify, num_workers, progress)
    for path in places:
        try:
            _store(path, table)
            return np.load(path, mmap_mode="r")
        except OSError as error:
            log.info("%s cannot be written (%s)", path, error.strerror)
    return table


def _stored(path: Path, count: int) -> np.ndarray | None:
    """The table in a file, mapped into memory; None if there is none, or the file was cut short."""
    try:
        table = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return table if table.shape == (len(COLUMNS), count) else None


def _store(path: Path, table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, table)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _count(indices: range, examples: ChatExamples, verify: bool, num_workers: int, progress: Progress) -> np.ndarray:
    blocks = [range(start, min(start + BLOCK, indices.stop)) for start in range(indices.start, indices.stop, BLOCK)]
    loader = DataLoader(_Counter(examples, verify), sampler=blocks, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)  # type: ignore[arg-type]
    counted: list[np.ndarray] = []
    for block in progress(loader, len(blocks)):
        if isinstance(block, Failure):
            raise block.error()
        counted.append(block)
    total, shared, images, key = np.concatenate(counted, axis=1)
    _, firsts, inverse = np.unique(key, return_index=True, return_inverse=True)
    group = np.where(shared > 0, firsts[inverse], np.arange(len(key)))
    return np.stack([total, shared, images, group]).astype(np.int32)


def _as_it_is(block: Any) -> Any:
    return block


@dataclass(frozen=True)
class _Counter:
    """Blocks of samples to arrays of shape [4, block]: total, shared, images, and a hash of pictures and shared tokens."""

    examples: ChatExamples
    verify: bool

    def __getitem__(self, block: Sequence[int]) -> np.ndarray | Failure:
        return guarded(lambda: np.array([self._measure(index) for index in block], dtype=np.int64).T)

    def _measure(self, index: int) -> tuple[int, int, int, int]:
        try:
            return self.examples.measure(index, verify=self.verify)
        except DataFormatError:
            return 0, 0, 0, 0

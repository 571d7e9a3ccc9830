"""Which vectors a feature cache will hold, and in which batches they are made. Knows neither files nor encoders."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from vlm.errors import ConfigError

LONGEST_NAME = 100  # letters of an item in a message
NAMED = (str, int, PurePath)  # items that are encoded once if they are equal


@dataclass(frozen=True)
class Plan:
    """Which vectors there are, and which items they are of.

    Attributes:
        items: What is encoded.
        ids: A name for each item, if they have names.
        lengths: Tokens or letters of each item.
        firsts: For each vector, the first item that it is of.
        row_of_item: For each item, its vector.
        shard_rows: Vectors of a shard.
        batch_size: Most items in a batch.
        batch_tokens: Most tokens in a batch.
    """

    items: Sequence[Any]
    ids: Sequence[str] | None
    lengths: np.ndarray
    firsts: np.ndarray
    row_of_item: np.ndarray
    shard_rows: int
    batch_size: int | None
    batch_tokens: int | None

    @classmethod
    def of(
        cls,
        items: Sequence[Any],
        ids: Sequence[str] | None,
        lengths: Sequence[int] | None,
        *,
        shard_rows: int,
        batch_size: int | None,
        batch_tokens: int | None,
    ) -> "Plan":
        """Find the items that are equal; the arguments are those of `write_features`.

        Raises:
            ConfigError: If the settings contradict each other, or an item alone is longer than a batch may be.
        """
        _check_counts(len(items), ids=ids, lengths=lengths)
        _check_sizes(shard_rows=shard_rows, batch_size=batch_size, batch_tokens=batch_tokens)
        if batch_size is None and batch_tokens is None:
            raise ConfigError("Give a batch_size, or lengths and batch_tokens.")
        if batch_tokens is not None and lengths is None:
            raise ConfigError(f"batch_tokens={batch_tokens} needs lengths: the tokens of each item.")
        rows: dict[Any, int] = {}
        firsts: list[int] = []
        row_of_item = np.empty(len(items), dtype=np.int64)
        for i, item in enumerate(items):
            row = rows.setdefault(item, len(firsts)) if isinstance(item, NAMED) else len(firsts)
            if row == len(firsts):
                firsts.append(i)
            row_of_item[i] = row
        known = lengths if lengths is not None else [len(item) if isinstance(item, str) else 0 for item in items]
        plan = cls(items, ids, np.asarray(known), np.array(firsts), row_of_item, shard_rows, batch_size, batch_tokens)
        plan._refuse_too_long()
        return plan

    @property
    def num_shards(self) -> int:
        """Files that the vectors fill."""
        return math.ceil(len(self.firsts) / self.shard_rows)

    def items_of_shard(self, shard: int) -> np.ndarray:
        """Numbers of the items that a shard's vectors are made from."""
        return self.firsts[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def batches(self, shard: int) -> list[np.ndarray]:
        """Positions in a shard, in the batches that they are encoded in."""
        return length_batches(self.lengths[self.items_of_shard(shard)], batch_size=self.batch_size, batch_tokens=self.batch_tokens)

    def _refuse_too_long(self) -> None:
        longest = int(self.lengths.argmax())
        if self.batch_tokens is not None and self.lengths[longest] > self.batch_tokens:
            raise ConfigError(
                f"{self.name(longest)} has {self.lengths[longest]} tokens, a batch holds batch_tokens={self.batch_tokens}. "
                "Raise it, or cut the item and give its new length."
            )

    def name(self, item: int) -> str:
        """An item in a message."""
        text = repr(self.items[item])
        text = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."
        return f"Item {item} ({text})" if self.ids is None else f"Item {self.ids[item]!r} ({text})"

    def sha256(self) -> str:
        """Hash of the items that can be compared, and of the ids."""
        digest = hashlib.sha256(f"{len(self.items)}".encode())
        for values in (self.items, self.ids or ()):
            for value in values:
                digest.update((repr(str(value)) if isinstance(value, NAMED) else "-").encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def index(self) -> bytes:
        """What `index.safetensors` holds.

        Raises:
            ConfigError: If two items have the same id.
        """
        tensors = {}
        if len(self.firsts) < len(self.items):
            tensors["rows"] = torch.from_numpy(self.row_of_item)
        if self.ids is not None:
            names = np.array([name.encode("utf-8", "surrogatepass") for name in self.ids], dtype=np.bytes_)
            order = np.argsort(names, kind="stable")
            again = np.flatnonzero(names[order][1:] == names[order][:-1])
            if len(again):
                first, second = order[again[0] : again[0] + 2]
                raise ConfigError(f"Items {first} and {second} have the same id {self.ids[first]!r}. Give each item an id of its own.")
            tensors["ids"] = torch.from_numpy(names.view(np.uint8).reshape(len(names), -1))
            tensors["ids_order"] = torch.from_numpy(order)
        return save(tensors)


def length_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int | None = None, batch_tokens: int | None = None) -> list[np.ndarray]:
    """Positions in batches of similar length, the longest first, so that what does not fit into memory is found at once.

    Args:
        lengths: Tokens of each item, none of them above `batch_tokens`.
        batch_size: Most items in a batch.
        batch_tokens: Most tokens in a batch, padding to its longest item included.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = min(batch_size or len(order), len(order) if batch_tokens is None else batch_tokens // longest)
        batches.append(order[start : start + count])
        start += count
    return batches


def _check_counts(num_items: int, **lists: Sequence[Any] | None) -> None:
    if not num_items:
        raise ConfigError("There is nothing to encode: the list of items is empty.")
    for name, values in lists.items():
        if values is not None and len(values) != num_items:
            raise ConfigError(f"There are {num_items} items and {len(values)} {name}; give one for each.")


def _check_sizes(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"{name} must be at least 1, got {size}.")

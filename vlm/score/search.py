"""The nearest of many cached vectors, exactly: blocks of them against all queries, with a running best k. Knows neither pictures nor encoders.

Memory is one block in fp32 and its similarities, however many vectors there are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vlm.data.feature_cache import FeatureCache
from vlm.distributed.collectives import gather
from vlm.errors import CheckpointError
from vlm.types import World

ROWS_AT_ONCE = 16_384  # 34 MB of vectors of width 512 in fp32

Head = Callable[[Tensor], Tensor]
Progress = Callable[[Iterable[int], int], Iterable[int]]


@dataclass(frozen=True)
class Nearest:
    """What each query found, the best first; of equal cosines the lower item comes first.

    Attributes:
        items: Numbers of the items.
        cosines: Their cosines, -1 to 1.
    """

    items: Int[Tensor, "Q k"]
    cosines: Float[Tensor, "Q k"]


@torch.inference_mode()
def nearest(
    cache: FeatureCache,
    queries: Float[Tensor, "Q J"],
    k: int,
    *,
    head: Head = lambda vectors: vectors,
    device: torch.device | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    world: World | None = None,
    progress: Progress = lambda starts, _: starts,
) -> Nearest:
    """The k items of a cache whose vectors, after the head, are nearest to each query by cosine.

    Args:
        cache: Vectors of an encoder.
        queries: Vectors of the joint space.
        k: How many are wanted; all, if there are fewer.
        head: From the cache's vectors into the joint space.
        device: Where similarities are computed; None for the CPU.
        rows_at_once: Vectors of a block.
        world: The processes that share the blocks, all with the same queries, and all get what is found; None: this one alone.
        progress: Passes the first item of each block through, and shows how far it is; gets their number.

    Raises:
        CheckpointError: If the head gives vectors of another width than the queries.
    """
    wanted = F.normalize(queries.to(device or "cpu", torch.float32), dim=-1)
    best = Nearest(torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0))
    world = world or World.single()
    starts = range(world.rank * rows_at_once, len(cache), world.size * rows_at_once)
    for start in progress(starts, len(starts)):
        rows = cache.rows(torch.arange(start, min(start + rows_at_once, len(cache))))
        vectors = F.normalize(head(rows.to(wanted.device, torch.float32)).float(), dim=-1)
        if vectors.shape[1] != wanted.shape[1]:
            raise CheckpointError(
                f"The vectors in {cache.folder} have width {vectors.shape[1]} in the joint space, the queries {wanted.shape[1]}. Name the model that they are of."
            )
        best = _better(best, (wanted @ vectors.T).cpu(), start, k)
    return best if world.size == 1 else _joined(gather(best, world), k)


def _joined(found: Sequence[Nearest], k: int) -> Nearest:
    """The best of what several processes found."""
    items, order = torch.cat([each.items for each in found], dim=1).sort(dim=1)
    cosines, best = torch.cat([each.cosines for each in found], dim=1).gather(1, order).sort(dim=1, descending=True, stable=True)
    return Nearest(items.gather(1, best)[:, :k], cosines[:, :k])


def _better(best: Nearest, similarity: Float[Tensor, "Q B"], start: int, k: int) -> Nearest:
    """The best of what was found and of a block that begins with item `start`."""
    rows = [_row(best.items[i], best.cosines[i], similarity[i], start, k) for i in range(len(similarity))]
    return Nearest(torch.stack([items for items, _ in rows]), torch.stack([cosines for _, cosines in rows]))


def _row(
    items: Int[Tensor, " m"], cosines: Float[Tensor, " m"], block: Float[Tensor, " B"], start: int, k: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """`topk` picks any of equal values, so all that reach its last one are sorted, by a sort that keeps the order of equal ones."""
    reach = block.topk(min(k, len(block))).values[-1]
    found = (block >= reach).nonzero().flatten()
    joined_items, joined = torch.cat([items, found + start]), torch.cat([cosines, block[found]])
    order = joined.sort(descending=True, stable=True).indices[:k]
    return joined_items[order], joined[order]

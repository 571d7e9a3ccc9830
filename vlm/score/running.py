"""The parts of a job, one after the other, by one process of several: what is finished is passed over, what is all there is joined."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vlm.distributed.collectives import gather
from vlm.errors import ConfigError
from vlm.score.opening import Opened
from vlm.types import World

log = logging.getLogger(__name__)

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Share:
    """Which parts are a process's: those whose number, divided by `of`, leaves `number`."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, shard: str, world: World) -> "Share":
        """The share of a process of a shard `i/n`, i from 0 to n - 1.

        Raises:
            ConfigError: If the shard is not of this form.
        """
        number, _, of = (shard or "0/1").partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise ConfigError(f"--shard is i/n with i from 0 to n - 1, such as 0/4; got {shard}.")
        return cls(int(number) * world.size + world.rank, int(of) * world.size)

    def holds(self, index: int) -> bool:
        """True for a part of this share."""
        return index % self.of == self.number


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        num_parts: Parts of the whole table.
        missing: Of them, those that other processes have not finished, as the main process sees it.
        statuses: How often each status is in the table; empty while parts are missing, and on other ranks.
        rows: Rows that this process scored now.
        seconds: How long that took.
        images: Pictures that this process encoded.
        texts: Texts that it encoded.
    """

    num_parts: int
    missing: list[int]
    statuses: Counter[str]
    rows: int = 0
    seconds: float = 0.0
    images: int = 0
    texts: int = 0


def score_parts(opened: Opened, share: Share = Share(), world: World | None = None, *, progress: Progress | None = None) -> Outcome:
    """Score the parts of a share that are not finished; the last one to end joins them.

    Args:
        opened: The job.
        share: Which parts are this process's.
        world: The processes that wait for one another; None: this one alone.
        progress: Shows the parts as they go by.

    Raises:
        ConfigError: If what is there was made with other settings, or cannot be written.
        DataFormatError: If a file of pairs turns out to be broken; what was finished stays.
    """
    world, parts, scorer = world or World.single(), opened.parts, opened.scorer
    if parts.complete():
        parts.clean()
        return Outcome(0, [], parts.found())
    begin, num_parts = time.perf_counter(), 0
    each = opened.table.parts(opened.job.part_rows, lambda index: share.holds(index) and not parts.has(index))
    for index, pairs in each if progress is None else progress(each, "Scoring parts"):
        num_parts = index + 1
        if pairs is not None:
            statuses = parts.write(index, scorer.tables(pairs))
            log.info("part %d: %s rows, %s", index, f"{statuses.total():,}", in_words(statuses))
    seconds = time.perf_counter() - begin
    gather(None, world)  # all have written
    missing, statuses, done = [], Counter(), scorer.done
    if world.is_main:  # the others would look while it joins
        missing = parts.missing(num_parts)
        missing = [] if missing and parts.complete() else missing  # in this order: another process may be joining them
        statuses = Counter() if missing else parts.finish(num_parts)
    return Outcome(num_parts, missing, statuses, done.rows, seconds, done.images, done.texts)


def in_words(statuses: Counter[str]) -> str:
    """`9,980 ok, 20 decode_error`."""
    return ", ".join(f"{count:,} {status}" for status, count in statuses.most_common()) or "nothing to score"

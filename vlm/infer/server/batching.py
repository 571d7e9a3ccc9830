"""Requests to batches: a queue, and one thread that owns the model and answers what fits together. Knows no HTTP.

Rows of a batch share how tokens are drawn; a row that ends early is told at once, and newcomers join at the next batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vlm.infer.server.limits import Limits
from vlm.infer.server.metrics import Metrics
from vlm.models.answer_rows import Ask, Piece, answer, shared
from vlm.models.generate import PreparedPrompt
from vlm.models.sampling import Sampling

log = logging.getLogger(__name__)

SECONDS_FOR_COMPANY = 0.1  # that a batch waits at most for requests which are being read: rows that come along cost little, a batch of their own much


class Closed(Exception):
    """The server ends before it has answered."""


@dataclass(eq=False)
class Job:
    """One request in the queue or at work.

    Attributes:
        prompt: What is asked.
        sampling: How the answer is drawn.
        streamed: Pieces are told as they come.
        tell: Gets each piece, or what went wrong, from the worker's thread.
        logprobs: As in `Ask`.
    """

    prompt: PreparedPrompt
    sampling: Sampling
    streamed: bool
    tell: Callable[[Piece | Exception], None]
    logprobs: int | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for it any more: in the queue it frees its place, at work it ends with the next token."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """If somebody has called `cancel`."""
        return self._cancelled.is_set()

    @property
    def length(self) -> int:
        """Places that prompt and longest answer take."""
        return len(self.prompt) + self.sampling.max_new_tokens


class Batcher:
    """The queue and the thread."""

    def __init__(self, model: Any, limits: Limits, metrics: Metrics):
        """Start the thread.

        Args:
            model: A VisionLanguageModel that nobody else uses until `close`.
            limits: Sizes of batch and queue.
            metrics: Gets counts.
        """
        self.model, self.limits, self.metrics = model, limits, metrics
        self._waiting: deque[Job] = deque()
        self._coming = 0
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 1.0  # that a batch takes, a moving mean
        self._thread = threading.Thread(target=self._work, name="vlm-batcher", daemon=True)
        self._thread.start()

    def expect(self) -> None:
        """A job is being read, and will be submitted soon; `expect_no_more` takes it back."""
        with self._changed:
            self._coming += 1

    def expect_no_more(self) -> None:
        """A job that was expected has been submitted, or will not come."""
        with self._changed:
            self._coming -= 1
            self._changed.notify()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            Closed: If the server is ending.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Free a job's place, wherever it is; harmless once it is answered."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows of the batch at work, ended ones included."""
        return len(self._running)

    def seconds_until_free(self) -> int:
        """About how long a newcomer would wait, at least 1."""
        return max(1, round(self._seconds * (1 + len(self._waiting) / self.limits.max_batch)))

    def close(self, timeout: float = 30.0) -> None:
        """End: what waits is told `Closed`, what is at work ends with its next token.

        Args:
            timeout: Most seconds to wait for the thread.
        """
        with self._changed:
            self._closed = True
            ended, self._waiting = [*self._waiting, *self._running], deque()
            self._changed.notify()
        for job in ended:
            job.cancel()
            job.tell(Closed())
        self._thread.join(timeout)

    def _work(self) -> None:
        while batch := self._next():
            start = time.monotonic()
            self._answer(batch)
            seconds = time.monotonic() - start
            self._seconds += 0.2 * (seconds - self._seconds)
            self.metrics.count_batch(len(batch), seconds)
            self._running = ()

    def _next(self) -> Sequence[Job]:
        """The next batch, as soon as anything waits and a moment later if more is about to; nothing once the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(lambda: not self._coming or len(self._waiting) >= self.limits.max_batch or self._closed, SECONDS_FOR_COMPANY)
            if not self._closed:
                self._running = batch_of(self._waiting, self.limits)
                chosen = set(map(id, self._running))
                self._waiting = deque(job for job in self._waiting if id(job) not in chosen)
            return () if self._closed else self._running

    def _answer(self, batch: Sequence[Job]) -> None:
        """Answer a batch; what the device has no memory for, in halves."""
        begun: set[int] = set()

        def row(job: Job) -> Ask:
            def tell(piece: Piece) -> None:
                begun.add(id(job))
                job.tell(piece)

            return Ask(job.prompt, job.sampling, tell, job.streamed, lambda: job.is_cancelled, job.logprobs)

        try:
            answer(self.model, list(map(row, batch)))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1 or begun:
                return self._fail(batch, error)
            log.warning("There is no memory for a batch of %d; it is answered in halves. Lower --max-batch-tokens or --max-batch.", len(batch))
        except Exception as error:  # one bad batch must not end the server
            return self._fail(batch, error)
        else:
            return
        half = len(batch) // 2  # outside of the handler, whose traceback holds the memory of the attempt
        self._answer(batch[:half])
        self._answer(batch[half:])

    def _fail(self, batch: Sequence[Job], error: Exception) -> None:
        log.error("A batch of %d could not be answered.", len(batch), exc_info=error)
        for job in batch:
            job.tell(error)


def batch_of(waiting: Sequence[Job], limits: Limits) -> list[Job]:
    """The oldest job, and those behind it that can be answered with it, oldest first.

    Args:
        waiting: At least one job.
        limits: Most rows, and most rows times longest row.
    """
    first, *others = waiting
    batch, longest = [first], first.length
    for job in others:
        if len(batch) == limits.max_batch:
            break
        width = max(longest, job.length)
        if shared(job.sampling) != shared(first.sampling) or width * (len(batch) + 1) > limits.max_batch_tokens:
            continue
        batch.append(job)
        longest = width
    return batch

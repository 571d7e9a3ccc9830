"""One request from its admission to the end of its answer: its place, its bytes, its time, and the pieces that the batcher tells. Knows no JSON."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request

from vlm.infer.server.batching import Batcher, Closed, Job
from vlm.infer.server.limits import Limits
from vlm.infer.server.problem import RequestError
from vlm.models.answer_rows import Piece
from vlm.models.generate import PreparedPrompt
from vlm.models.sampling import Sampling

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection."""


class Exchange:
    """Holds a place until `close`; everything that it waits for ends at its deadline."""

    def __init__(self, request: Request, batcher: Batcher, limits: Limits, *, leave: Callable[[], None]):
        """Begin the request's time.

        Args:
            request: Whose client is watched.
            batcher: Who answers.
            limits: The time that it may take.
            leave: Called once, when the place is free again.
        """
        self.request, self.batcher, self.limits, self._leave = request, batcher, limits, leave
        self.loop = asyncio.get_running_loop()
        self.deadline = self.loop.time() + limits.timeout
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._job: Job | None = None
        self._open = self._expected = True
        batcher.expect()

    def close(self) -> None:
        """Free the place; an answer that is not complete is given up."""
        if self._open:
            self._open = False
            self._no_more_expected()
            if self._job is not None:
                self.batcher.cancel(self._job)
            self._leave()

    async def within_time(self, waited_for: Awaitable[T], *, doing: str) -> T:
        """What is waited for, unless the client leaves or the time is over.

        Args:
            waited_for: Cancelled in those cases.
            doing: What takes the time, for the message.

        Raises:
            RequestError: At the deadline.
            ClientGone: If the client leaves.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._while_connected(waited_for)
        except TimeoutError:
            raise RequestError(
                f"The request took longer than {self.limits.timeout:g} seconds, while {doing}. Ask for a shorter answer, or raise --timeout.",
                status=504,
                code="timeout",
            ) from None

    async def _while_connected(self, waited_for: Awaitable[T]) -> T:
        work = asyncio.ensure_future(waited_for)
        gone = asyncio.ensure_future(_left(self.request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise ClientGone
        finally:
            work.cancel()
            gone.cancel()

    def submit(self, prompt: PreparedPrompt, sampling: Sampling, *, streamed: bool, logprobs: int | None) -> None:
        """Wait in the queue.

        Raises:
            RequestError: If the server is ending.
        """
        job = Job(prompt, sampling, streamed, self._tell, logprobs)
        try:
            self.batcher.submit(job)
        except Closed:
            raise _closed() from None
        self._job = job
        self._no_more_expected()

    def _no_more_expected(self) -> None:
        if self._expected:
            self._expected = False
            self.batcher.expect_no_more()

    def _tell(self, piece: Piece | Exception) -> None:
        """From the batcher's thread to this one."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def next_piece(self) -> Piece:
        """The next piece of the answer.

        Raises:
            RequestError: If the server ends first, or could not answer.
        """
        piece = await self._pieces.get()
        if isinstance(piece, Closed):
            raise _closed()
        if isinstance(piece, Exception):
            raise RequestError("The model failed on this request; the server's log says why.", status=500, code="model_failed") from piece
        return piece


def _closed() -> RequestError:
    return RequestError("The server is shutting down; ask again in a moment.", status=503, code="shutting_down", retry_after=5)


async def _left(request: Request) -> None:
    """Returns when the client has left; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

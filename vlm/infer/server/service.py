"""What the server does with a request for an answer: admit, receive, read, prepare, queue, reply. The routes are in app.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vlm.errors import DataFormatError
from vlm.infer.server.batching import Batcher
from vlm.infer.server.budget import Budget, Share
from vlm.infer.server.exchange import ClientGone, Exchange
from vlm.infer.server.limits import Limits
from vlm.infer.server.metrics import Metrics
from vlm.infer.server.pictures import Fetch, decode_pictures, read_addresses
from vlm.infer.server.problem import RequestError, error_body, in_words_of_the_api
from vlm.infer.server.protocol import ChatRequest, Reply, event, parse, sampling_of
from vlm.models.answer_rows import Piece
from vlm.models.generate import ContextError, PreparedPrompt, Prompt, prepare, warn_without_question
from vlm.models.sampling import Sampling
from vlm.models.vision_language import VisionLanguageModel

T = TypeVar("T")

NUM_DECODERS = 2  # pictures of full size in memory at a time
NUM_FETCHERS = 8
SECONDS_TO_RECEIVE = 60.0  # a client that sends slowly must not keep a place for long
CONTEXT_LENGTH = "context_length_exceeded"  # OpenAI's code, by which clients know that the conversation must be shorter
CLIENT_GONE = 499  # nginx's; nobody reads it but the metrics


class Service:
    """One model, its queue, and the requests that are open."""

    def __init__(self, model: VisionLanguageModel, name: str, *, limits: Limits, default: Sampling, fetch: Fetch):
        """Start the batcher.

        Args:
            model: Nobody else may use it until `close`.
            name: What clients call it.
            limits: Bounds.
            default: How answers are drawn where a request says nothing; its length is the limits'.
            fetch: Gets a picture from a web address, or refuses.
        """
        self.model, self.name, self.limits, self.default, self.fetch = model, name, limits, default, fetch
        warn_without_question(model.template)
        self.metrics = Metrics()
        self.batcher = Batcher(model, limits, self.metrics)
        self.budget = Budget(limits.max_held_bytes)
        self.num_open = 0
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="vlm-decode")
        self._fetchers = ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="vlm-fetch")

    def give_up(self) -> None:
        """Tell requests that are open, and those that come, that the server ends; returns at once."""
        self.batcher.close(timeout=0.0)

    def close(self) -> None:
        """End the batcher; requests that are still open are told so."""
        self.batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def check_name(self, model: str) -> None:
        """Compare the name that a client gives the model with its own.

        Raises:
            RequestError: If it is another one.
        """
        if model != self.name:
            message = f"There is no model {model!r} here; this server has {self.name!r}."
            raise RequestError(message, status=404, param="model", code="model_not_found")

    async def chat(self, request: Request) -> Response:
        """Answer `POST /v1/chat/completions`.

        Raises:
            RequestError: If the request is refused, or the answer fails before its first piece.
        """
        _check_head(request, self.limits)
        exchange = self._admit(request)
        try:
            asked, sampling, prompt = await self._received(exchange)
            if asked.max_new_tokens is None:  # as long as limits and context allow
                sampling = replace(sampling, max_new_tokens=min(self.limits.max_new_tokens, self.model.language.max_length - len(prompt)))
            exchange.submit(prompt, sampling, streamed=asked.stream, logprobs=asked.logprobs)
            piece = await exchange.within_time(exchange.next_piece(), doing="waiting for the first piece of the answer")
        except (ClientGone, ClientDisconnect):
            exchange.close()
            return Response(status_code=CLIENT_GONE)
        except BaseException:
            exchange.close()
            raise
        reply = Reply(self.name, prompt_tokens=len(prompt))
        if asked.stream:
            return _Stream(self._events(exchange, reply, piece, include_usage=asked.include_usage), exchange.close)
        exchange.close()
        self.metrics.count_answer(len(prompt), piece.num_tokens)
        return JSONResponse(reply.whole(piece))

    def _admit(self, request: Request) -> Exchange:
        """A place, before a byte of the body is read."""
        if self.num_open >= self.limits.max_queue + self.limits.max_batch:
            raise self._busy(f"The queue is full: {self.num_open} requests are open.")
        self.num_open += 1
        return Exchange(request, self.batcher, self.limits, leave=self._left)

    def _left(self) -> None:
        self.num_open -= 1

    def _busy(self, reason: str) -> RequestError:
        seconds = self.batcher.seconds_until_free()
        return RequestError(f"{reason} Ask again in {seconds} s.", status=429, code="queue_full", retry_after=seconds)

    async def _received(self, exchange: Exchange) -> tuple[ChatRequest, Sampling, PreparedPrompt]:
        """The request, read and ready for the model; its bytes are not held any longer."""
        share = Share(self.budget)
        with share.given_back():
            body = await self._body(exchange, share)
            asked = await self._in_thread(exchange, self._decoders, lambda: parse(body), doing="reading the request")
            sampling = self._checked(asked)
            remote = any(not address.startswith("data:") for address in asked.pictures)
            pool, read = self._fetchers if remote else self._decoders, lambda: read_addresses(asked.pictures, self.limits, self.fetch)
            files = await self._in_thread(exchange, pool, read, doing="fetching pictures")
            if not share.take(sum(map(len, files))):
                raise self._busy("Too many pictures are being read.")
            prompt = await self._in_thread(exchange, self._decoders, lambda: self._prepared(asked, files), doing="reading pictures")
            return replace(asked, pictures=()), sampling, prompt

    def _checked(self, asked: ChatRequest) -> Sampling:
        """How the answer is drawn, if this server can give it; no picture has been looked at.

        Raises:
            RequestError: If it cannot.
        """
        self.check_name(asked.model)
        length = 1 if asked.max_new_tokens is None else asked.max_new_tokens
        if length > self.limits.max_new_tokens:
            message = f"{asked.length_field!r} is {length}; this server gives answers of at most {self.limits.max_new_tokens} tokens."
            raise RequestError(message, param=asked.length_field)
        return sampling_of(asked, self.default, length)

    async def _body(self, exchange: Exchange, share: Share) -> bytes:
        """All bytes of the request.

        Raises:
            RequestError: If they are too many, for this request or for all that are being received, or come too slowly.
        """
        content, seconds = bytearray(), min(SECONDS_TO_RECEIVE, self.limits.timeout)
        try:
            async with asyncio.timeout(seconds):
                async for chunk in exchange.request.stream():
                    if len(content) + len(chunk) > self.limits.max_body_bytes:
                        raise _too_large(self.limits)
                    if not share.take(len(chunk)):
                        raise self._busy("Too many large requests are being received.")
                    content += chunk
        except TimeoutError:
            raise RequestError(f"The request had not arrived after {seconds:g} seconds.", status=408, code="timeout") from None
        return bytes(content)

    async def _in_thread(self, exchange: Exchange, pool: ThreadPoolExecutor, work: Callable[[], T], *, doing: str) -> T:
        return await exchange.within_time(asyncio.get_running_loop().run_in_executor(pool, work), doing=doing)

    def _prepared(self, asked: ChatRequest, files: list[bytes]) -> PreparedPrompt:
        """Tokens and tiles; of the pictures, no more than the tiles stays."""
        try:
            prompt = prepare(self.model, Prompt(asked.messages, tuple(decode_pictures(files, self.limits))), room=asked.max_new_tokens or 1)
        except DataFormatError as error:
            code = CONTEXT_LENGTH if isinstance(error, ContextError) else None
            raise RequestError(in_words_of_the_api(error, asked.length_field), param="messages", code=code) from None
        if len(prompt) > self.limits.max_prompt_tokens:
            message = f"The conversation has {len(prompt)} tokens, pictures included; this server takes {self.limits.max_prompt_tokens}."
            raise RequestError(message, param="messages", code=CONTEXT_LENGTH)
        return prompt

    async def _events(self, exchange: Exchange, reply: Reply, piece: Piece, *, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events; what goes wrong after the first one is an event as well, because the status has been sent."""
        yield reply.chunk({"role": "assistant", "content": ""})
        try:
            while True:
                if piece.text or piece.steps:
                    yield reply.chunk({"content": piece.text}, steps=piece.steps)
                if piece.finish:
                    break
                piece = await exchange.within_time(exchange.next_piece(), doing="answering")
        except RequestError as error:
            yield event(error_body(str(error), status=error.status, param=error.param, code=error.code))
            return
        except ClientGone:
            return
        self.metrics.count_answer(reply.prompt_tokens, piece.num_tokens)
        yield reply.chunk({}, finish=piece.finish)
        if include_usage:
            yield reply.last_usage(piece.num_tokens)
        yield event("[DONE]")


class _Stream(StreamingResponse):
    """Server-sent events; its exchange is closed however it ends, also if it never begins."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _check_head(request: Request, limits: Limits) -> None:
    """What the headers alone rule out. A web page of another origin can send any text without asking, but not `application/json`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"The content type is {kind!r}; send 'application/json'.", status=415)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)


def _too_large(limits: Limits) -> RequestError:
    message = f"The request is larger than {limits.max_body_bytes:,} bytes. Send smaller pictures, or raise --max-body-bytes."
    return RequestError(message, status=413, code="request_too_large")

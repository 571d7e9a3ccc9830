"""OpenAI's chat completions in JSON: a request to messages, picture addresses and sampling, pieces of an answer to chunks. Knows no web framework.

A field that would change the answer and cannot be honored is refused by name; one that changes nothing is ignored.
Reference: https://platform.openai.com/docs/api-reference/chat (fields as of the `openai` package 3).
"""

import difflib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vlm.errors import ConfigError
from vlm.infer.server.problem import RequestError, in_words_of_the_api
from vlm.messages import IMAGE_PLACEHOLDER, Message, Role
from vlm.models.answer_rows import Piece
from vlm.models.sampling import Sampling
from vlm.models.token_scores import Candidate, Step

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields that say nothing about the answer's words.
HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
)
# Fields that are refused unless they say what this server does anyway.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
DRAWN = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")  # fields of a request that are fields of `Sampling`
MOST_LOGPROBS, LOWEST_LOGPROB = 20, -9999.0  # OpenAI's; JSON has no minus infinity
MOST_STOPS, LONGEST_STOP = 16, 256  # each is looked for after each token


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(_Part):
    """Words."""

    type: Literal["text"]
    text: str


class ImageAddress(_Part):
    """Where a picture is."""

    url: str


class ImagePart(_Part):
    """A picture; `detail` is ignored, because the model sees every picture in one way."""

    type: Literal["image_url"]
    image_url: Annotated[ImageAddress, BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else [] if content is None else content


class Turn(_Part):
    """One message of the request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], BeforeValidator(_as_parts)] = []
    tool_calls: list[Any] | None = None


class StreamOptions(_Part):
    """What a stream tells besides the answer."""

    include_usage: bool = False


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class Body(BaseModel):
    """The fields of a request that this server knows; the others are looked at one by one."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    stop: Annotated[list[Annotated[str, Field(max_length=LONGEST_STOP)]] | None, Field(max_length=MOST_STOPS), BeforeValidator(_as_list)] = None


@dataclass(frozen=True)
class ChatRequest:
    """A request whose form is right; its pictures are still addresses.

    Attributes:
        model: The model that is asked for.
        messages: The conversation, with `<image>` where its pictures are.
        pictures: Data URLs or web addresses, in the order of their places.
        sampled: The fields of `Sampling` that the request states, but the answer's length.
        max_new_tokens: The answer's length, if the request states it.
        length_field: The field that states it.
        stream: Send the answer piece by piece.
        include_usage: End a stream with a count of tokens.
        logprobs: Tell how likely each token was, and so many of the likeliest at its place; None for neither.
    """

    model: str
    messages: tuple[Message, ...]
    pictures: tuple[str, ...]
    sampled: Mapping[str, Any]
    max_new_tokens: int | None
    length_field: str
    stream: bool
    include_usage: bool
    logprobs: int | None


def parse(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        RequestError: If it is no JSON, a field is missing, wrong or cannot be honored, or the turns are not as they must be.
    """
    try:
        request = Body.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None
    _check_others(request.model_extra or {})
    turns = [_read(turn, f"messages.{i}") for i, turn in enumerate(request.messages)]
    if turns[-1][0].role != "user":
        raise RequestError(f"The last message is by {request.messages[-1].role!r}; end with a user's.", param="messages")
    if request.top_logprobs and not request.logprobs:
        raise RequestError(f"'top_logprobs' is {request.top_logprobs}, and 'logprobs' is not true. Send both, or neither.", param="top_logprobs")
    stated = {name: value for name in DRAWN if (value := getattr(request, name)) is not None}
    length_field = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"  # the newer one goes first
    return ChatRequest(
        model=request.model,
        messages=tuple(message for message, _ in turns),
        pictures=tuple(url for _, urls in turns for url in urls),
        sampled=stated,
        max_new_tokens=getattr(request, length_field),
        length_field=length_field,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def sampling_of(request: ChatRequest, default: Sampling, max_new_tokens: int) -> Sampling:
    """How the answer to a request is drawn.

    Args:
        request: What is asked.
        default: What holds where the request says nothing.
        max_new_tokens: Longest answer.

    Raises:
        RequestError: If a value is out of its range.
    """
    try:
        values = {field.name: getattr(default, field.name) for field in fields(default)} | dict(request.sampled)
        return Sampling(**values | {"max_new_tokens": max_new_tokens})
    except ConfigError as error:
        message = in_words_of_the_api(error, request.length_field)
        raise RequestError(message, param=message.split(" ")[0]) from None  # the messages of `Sampling` begin with the field


def _invalid(error: ValidationError) -> RequestError:
    """The first fault that pydantic found, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for before, step in zip(("", *first["loc"]), first["loc"], strict=False) if not _is_alternative(before, step))
    if first["type"] == "json_invalid":
        return RequestError(f"The request is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if first["type"] == "missing":
        return RequestError(f"The request lacks {where!r}.", param=where)
    return RequestError(f"{where or 'The request'}: {first['msg']}; got {_shown(first['input'])}.", param=where or None)


def _is_alternative(before: int | str, step: int | str) -> bool:
    """If pydantic puts the name of an alternative into a place: the kind of a part, behind its number."""
    return isinstance(before, int) and step in ("text", "image_url")


def _shown(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False, default=repr)
    return words if len(words) <= 80 else words[:77] + "..."


def _check_others(extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        if value is None or name in HARMLESS or (name in NEUTRAL and any(value == neutral for neutral in NEUTRAL[name])):
            continue
        if name in NEUTRAL:
            allowed = " or ".join(json.dumps(neutral) for neutral in NEUTRAL[name])
            raise RequestError(f"{name!r} is {_shown(value)}; this server takes {allowed} alone. Leave it out.", param=name, code="unsupported_value")
        near = difflib.get_close_matches(name, [*Body.model_fields, *NEUTRAL], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Leave it out."
        raise RequestError(f"{name!r} is no field that this server knows. {hint}", param=name, code="unknown_parameter")


def _read(turn: Turn, where: str) -> tuple[Message, list[str]]:
    """A message, and its pictures; parts become lines of one text, as in training data of this form (vlm/data/formats/openai.py)."""
    if turn.tool_calls:
        raise RequestError("Calls of tools cannot be read; write the call into 'content'.", param=f"{where}.tool_calls", code="unsupported_value")
    texts, urls = [], []
    for i, part in enumerate(turn.content):
        if isinstance(part, ImagePart):
            if turn.role != "user":
                raise RequestError(f"A message by {turn.role!r} has a picture; only a user's may.", param=f"{where}.content.{i}")
            urls.append(part.image_url.url)
            texts.append(IMAGE_PLACEHOLDER)
            continue
        if IMAGE_PLACEHOLDER in part.text:
            message = f"A text has {IMAGE_PLACEHOLDER!r} in it; leave it out, parts of the type 'image_url' say where pictures are."
            raise RequestError(message, param=f"{where}.content.{i}.text")
        texts.append(part.text)
    if not texts:
        raise RequestError("A message has no content; give a text or parts.", param=f"{where}.content")
    return Message(ROLES[turn.role], "\n".join(texts).strip()), urls


class Reply:
    """The JSON of one answer, whole or in chunks."""

    def __init__(self, model: str, *, prompt_tokens: int):
        """Begin an answer.

        Args:
            model: Name of the model that answers.
            prompt_tokens: Tokens of what was asked.
        """
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.prompt_tokens = prompt_tokens

    def usage(self, num_tokens: int) -> dict[str, int]:
        """Tokens of prompt and answer."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": num_tokens, "total_tokens": self.prompt_tokens + num_tokens}

    def whole(self, piece: Piece) -> dict[str, Any]:
        """The body of an answer that is not streamed, and so is one piece."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        choices = [{"index": 0, "message": message, "logprobs": _logprobs(piece.steps), "finish_reason": piece.finish}]
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self.usage(piece.num_tokens)}

    def chunk(self, delta: Mapping[str, str], *, finish: str | None = None, steps: Sequence[Step] = ()) -> str:
        """One event of a stream."""
        choices = [{"index": 0, "delta": dict(delta), "logprobs": _logprobs(steps), "finish_reason": finish}]
        return event({**self.head, "object": "chat.completion.chunk", "choices": choices})

    def last_usage(self, num_tokens: int) -> str:
        """The event that counts tokens, after the answer."""
        choices: Sequence[Any] = []
        return event({**self.head, "object": "chat.completion.chunk", "choices": choices, "usage": self.usage(num_tokens)})


def _logprobs(steps: Sequence[Step]) -> dict[str, Any] | None:
    """Log-probabilities of tokens; nothing where they were not asked for."""
    if not steps:
        return None
    return {"content": [{**_candidate(step.token), "top_logprobs": list(map(_candidate, step.likeliest))} for step in steps], "refusal": None}


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"token": one.utf8.decode(errors="replace"), "logprob": max(one.log_prob, LOWEST_LOGPROB), "bytes": list(one.utf8)}


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"

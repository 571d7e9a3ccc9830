"""Pictures and text in, text out: splice, left padding, and transformers' own `generate`; no sampling loop of ours.

Knows the model and the data encoding; not where either came from, nor who asks.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vlm.data.chat import encode_chat
from vlm.data.given_picture import as_pictures
from vlm.data.image import to_tiles
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message, count_placeholders
from vlm.models.answer_text import EndsWithStop, cut, decode, pieces_of, until_stop
from vlm.models.sampling import GREEDY, Sampling, settings
from vlm.models.splice import splice
from vlm.models.vision_language import VisionLanguageModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user turn, and its pictures in the order of their `<image>` placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()


class ContextError(DataFormatError):
    """A conversation that, with its answer, is longer than the language model reads."""


def as_prompts(prompts: Any) -> list[Prompt]:
    """Conversations from what a caller gives; see `as_prompt`.

    Raises:
        FetchError, DataFormatError: See `as_prompt`; also if the prompts are one text, whose letters would be answered one by one.
    """
    if isinstance(prompts, str):
        raise DataFormatError(f"The prompts are one text, {prompts[:80]!r}; give a list of prompts.")
    return [as_prompt(prompt) for prompt in prompts]


def as_prompt(prompt: Any) -> Prompt:
    """The conversation that a question, a pair of pictures and a question, or a prompt stands for; pictures as `as_pictures` takes them.

    Raises:
        FetchError, DataFormatError: If it is none of these, a picture cannot be had, or placeholders and pictures disagree.
    """
    if isinstance(prompt, Prompt):
        return replace(prompt, images=tuple(as_pictures(prompt.images)))
    if isinstance(prompt, str):
        return ask([], prompt)
    if isinstance(prompt, Sequence) and len(prompt) == 2 and isinstance(prompt[1], str):
        return ask(*prompt)
    raise DataFormatError(f"A prompt is a question, a pair (pictures, question), or a Prompt; got {repr(prompt)[:80]}.")


def ask(images: Any, text: str, *, history: Sequence[Message] = (), earlier_images: Any = ()) -> Prompt:
    """A prompt from pictures and a question; without placeholders in the text, the pictures come first, as in LLaVA.

    Args:
        images: Pictures of the question, as `vlm.data.given_picture.as_pictures` takes them.
        text: The question.
        history: Earlier turns.
        earlier_images: Their pictures.

    Raises:
        FetchError, DataFormatError: If a picture cannot be had, or the text has placeholders, but not as many as there are pictures.
    """
    images, earlier_images = as_pictures(images), as_pictures(earlier_images)
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if placeholders == 0:
        text = f"{IMAGE_PLACEHOLDER}\n" * len(images) + text
    elif placeholders != len(images):
        raise DataFormatError(
            f"The question has {placeholders} {IMAGE_PLACEHOLDER} placeholders for {len(images)} pictures. Give one picture for each, or no placeholder."
        )
    return Prompt(messages=(*history, Message("user", text)), images=(*earlier_images, *images))


@torch.inference_mode()
def generate(model: VisionLanguageModel, prompts: Sequence[Prompt], sampling: Sampling = GREEDY) -> list[str]:
    """Answers to a batch of prompts, each the one that the prompt would get alone.

    Raises:
        DataFormatError: If placeholders and pictures disagree, a prompt has no tokens, or it and its answer could exceed the context.
    """
    if not prompts:
        return []
    warn_without_question(model.template)
    embeds, mask = left_padded(embed_prompts(model, prompts, sampling.max_new_tokens))
    ids = model.language.generate(embeds, mask, stopping_criteria=_criteria(model, sampling), **settings(model, sampling, len(prompts)))
    return [trim(decode(model.language.tokenizer, row), model, sampling) for row in ids.tolist()]


def stream(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling = GREEDY) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is generated; joined and stripped, it is that of `generate`.

    Raises:
        ConfigError: If a beam search is asked for, which knows its first word last.
        DataFormatError: See `generate`; raised before the first piece.
    """
    if sampling.num_beams > 1:
        raise ConfigError(f"num_beams is {sampling.num_beams}; a beam search cannot be streamed. Set num_beams to 1, or do not stream.")
    warn_without_question(model.template)
    with torch.inference_mode():
        embeds, mask = left_padded(embed_prompts(model, [prompt], sampling.max_new_tokens))
    tokens, left = _TokenQueue(), threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                criteria = _criteria(model, sampling, left)
                model.language.generate(embeds, mask, streamer=tokens, stopping_criteria=criteria, **settings(model, sampling, 1))
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            tokens.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from until_stop(pieces_of(tokens, model.language.tokenizer), _stops(model, sampling))
    finally:
        left.set()
        thread.join()
    if failure:
        raise failure[0]


class _TokenQueue:
    """What `generate` hands tokens to (a `BaseStreamer` in all but its type, which would import transformers), and another thread takes them from."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def put(self, ids: Int[Tensor, "..."]) -> None:
        for token in ids.flatten().tolist():
            self._queue.put(token)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._queue.get, None)  # type: ignore[return-value]


@cache
def warn_without_question(template: ChatTemplate) -> None:
    """Say, once for each template, that questions are left out of the prompt."""
    if "{content}" not in template.user:
        log.warning("This run's chat template %r has no place for a question: the model sees pictures alone, and describes them.", template.name)


def _criteria(model: VisionLanguageModel, sampling: Sampling, left: threading.Event | None = None) -> Any:
    """What ends an answer beside its end token and its length: a stop string, and that nobody listens any more."""
    from transformers import StoppingCriteriaList

    criteria = StoppingCriteriaList()
    if sampling.stop:
        criteria.append(EndsWithStop(model.language.tokenizer, sampling.stop))
    if left is not None:
        criteria.append(lambda ids, scores, **_: torch.full((len(ids),), left.is_set(), device=ids.device))
    return criteria


def _stops(model: VisionLanguageModel, sampling: Sampling) -> tuple[str, ...]:
    return (*model.template.stop, *sampling.stop)


def trim(text: str, model: VisionLanguageModel, sampling: Sampling = GREEDY) -> str:
    """An answer up to the first stop string, of the template or of the user, without outer white space."""
    return cut(text, _stops(model, sampling)).strip()


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as the model takes it, on the CPU; several threads may prepare while another one generates.

    Attributes:
        ids: Token ids, each picture expanded.
        tiles: The pictures' tiles, in reading order; empty without pictures.
    """

    ids: Int[Tensor, "1 T"]
    tiles: tuple[UInt8[Tensor, "N 3 H W"], ...] = ()

    def __len__(self) -> int:
        return self.ids.shape[1]


def prepare(model: VisionLanguageModel, prompt: Prompt, room: int) -> PreparedPrompt:
    """Tokens and tiles of a prompt; nothing runs on the model's device.

    Args:
        model: The model.
        prompt: The conversation.
        room: Tokens that must still fit behind it.

    Raises:
        DataFormatError: If placeholders and pictures disagree, the prompt has no tokens, or the context is too short.
    """
    check_placeholders(prompt)
    check_characters(prompt.messages, model)
    tiled = [to_tiles(image, model.image_policy) for image in prompt.images]
    ids = encode_prompt(model, prompt.messages, [model.tokens_per_image(layout) for _, layout in tiled])
    if ids.shape[1] == 0:
        raise DataFormatError(f"The prompt has no tokens: the chat template {model.template.name!r} has no place for text. Give a picture.")
    check_room(ids.shape[1], room, model)
    return PreparedPrompt(ids, tuple(tiles for tiles, _ in tiled))


def embed_prompts(model: VisionLanguageModel, prompts: Sequence[Prompt], room: int) -> list[Float[Tensor, "1 _ E"]]:
    """Prompts as embeddings, their pictures spliced in.

    Raises:
        DataFormatError: See `prepare`.
    """
    return embed_prepared(model, [prepare(model, prompt, room) for prompt in prompts])


def embed_prepared(model: VisionLanguageModel, prompts: Sequence[PreparedPrompt]) -> list[Float[Tensor, "1 _ E"]]:
    """Prepared prompts as embeddings; all pictures go through the vision backbone together."""
    rows = [prompt.ids.to(model.device) for prompt in prompts]
    texts = [model.language.embed(ids) for ids in rows]
    tiles = [tile for prompt in prompts for tile in prompt.tiles]
    if not tiles:
        return texts
    counts = [sum(map(len, prompt.tiles)) for prompt in prompts]
    images = model.encode_images(torch.cat(tiles).to(model.device)).split(counts)
    return [splice(*row, image_token_id=model.language.image_token_id) for row in zip(texts, rows, images, strict=True)]


def check_placeholders(prompt: Prompt) -> None:
    """Compare placeholders and pictures.

    Raises:
        DataFormatError: If their numbers differ.
    """
    placeholders = count_placeholders(prompt.messages)
    if placeholders != len(prompt.images):
        raise DataFormatError(
            f"The conversation has {placeholders} {IMAGE_PLACEHOLDER} placeholders for {len(prompt.images)} pictures. "
            "Give the pictures of earlier turns again, in their order, or remove their placeholders."
        )


def check_characters(messages: Sequence[Message], model: VisionLanguageModel) -> None:
    """Refuse what cannot fit the context however it is tokenized: a megabyte of text takes seconds and hundreds of megabytes of memory to be.

    Raises:
        ContextError: If there are more characters than the longest tokens could hold.
    """
    length, context = sum(len(message.text) for message in messages), model.language.max_length
    if length > context and length > context * model.language.longest_token:
        raise ContextError(
            f"The conversation has {length:,} characters; the language model reads {context} tokens, of at most {model.language.longest_token} "
            "characters each. Shorten the conversation."
        )


def check_room(length: int, room: int, model: VisionLanguageModel) -> None:
    """Compare a prompt and its longest answer with the context.

    Raises:
        ContextError: If they do not fit.
    """
    if length + room > model.language.max_length:
        raise ContextError(
            f"The prompt has {length} tokens and the answer may have {room}; the language model reads {model.language.max_length}. "
            "Shorten the conversation, or lower max_new_tokens."
        )


def encode_prompt(model: VisionLanguageModel, messages: Sequence[Message], tokens_per_image: Sequence[int]) -> Int[Tensor, "1 T"]:
    """Token ids of a conversation, on the CPU.

    Args:
        model: The model.
        messages: The turns.
        tokens_per_image: Image tokens of each picture.
    """
    language = model.language
    encoded = encode_chat(
        messages, template=language.template, tokenizer=language.tokenizer, image_token_id=language.image_token_id, tokens_per_image=tokens_per_image
    )
    return encoded.ids.unsqueeze(0)


def left_padded(rows: Sequence[Float[Tensor, "1 _ E"]]) -> tuple[Float[Tensor, "B T E"], Int[Tensor, "B T"]]:
    """Rows of different lengths as one batch, aligned at the end, and its attention mask."""
    longest = max(row.shape[1] for row in rows)
    embeds = torch.cat([torch.nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - row.shape[1] for row in rows]).long()
    return embeds, mask.to(embeds.device)

"""Pictures and text in, text out: splice, left padding, and transformers' own `generate`; no sampling loop of ours.

Knows the model and the data encoding; not where either came from, nor who asks.
"""

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vlm.data.chat import encode_chat
from vlm.data.image import to_tiles
from vlm.distributed.shard import is_sharded
from vlm.errors import ConfigError, DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message, count_placeholders
from vlm.models.answer_tree import AnswerTree, node_states
from vlm.models.splice import splice
from vlm.models.vision_language import VisionLanguageModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user turn, and its pictures in the order of their `<image>` placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Longest answer, in tokens, at least 1.
        temperature: 0 for the most likely token each time; else the softmax temperature, positive.
        top_p: Share of the probability mass that is drawn from, above 0, to 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; an answer has at least 1 token.")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}; it must be finite and at least 0, and 0 takes the most likely token each time.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


GREEDY = Sampling()


def ask(images: Sequence[Image.Image], text: str, *, history: Sequence[Message] = (), earlier_images: Sequence[Image.Image] = ()) -> Prompt:
    """A prompt from pictures and a question; without placeholders in the text, the pictures come first, as in LLaVA.

    Raises:
        DataFormatError: If the text has placeholders, but not as many as there are pictures.
    """
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
    """Answers to a batch of prompts.

    Raises:
        DataFormatError: If placeholders and pictures disagree, a prompt has no tokens, or it and its answer could exceed the context.
    """
    _warn_without_question(model.template)
    embeds, mask = left_padded(embed_prompts(model, prompts, sampling.max_new_tokens))
    ids = model.language.generate(embeds, mask, **settings(model, sampling))
    texts = model.language.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [trim(text, model) for text in texts]


def stream(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling = GREEDY) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is generated.

    Raises:
        DataFormatError: See `generate`; raised before the first piece.
    """
    from transformers import TextIteratorStreamer

    _warn_without_question(model.template)
    with torch.inference_mode():
        embeds, mask = left_padded(embed_prompts(model, [prompt], sampling.max_new_tokens))
    streamer = TextIteratorStreamer(model.language.tokenizer, skip_special_tokens=True)
    left = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                model.language.generate(embeds, mask, streamer=streamer, stopping_criteria=_stop_when(left), **settings(model, sampling))
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for piece in streamer:
            yield _before_stop(piece, model)  # a stop string is one token, so it never spans two pieces
    finally:
        left.set()
        thread.join()
    if failure:
        raise failure[0]


@cache
def _warn_without_question(template: ChatTemplate) -> None:
    """Say, once for each template, that questions are left out of the prompt."""
    if "{content}" not in template.user:
        log.warning("This run's chat template %r has no place for a question: the model sees pictures alone, and describes them.", template.name)


def _stop_when(left: threading.Event) -> Any:
    """End generation after the token at hand once nobody listens any more."""
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([lambda ids, scores, **_: torch.full((len(ids),), left.is_set(), device=ids.device)])


def settings(model: VisionLanguageModel, sampling: Sampling) -> dict[str, Any]:
    """transformers' generation arguments. Ranks that share a model stop together, because each needs the others in every forward pass."""
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {"do_sample": False}
    return {"max_new_tokens": sampling.max_new_tokens, "synced_gpus": is_sharded(model), **drawn}


def trim(text: str, model: VisionLanguageModel) -> str:
    """An answer without the template's stop strings and outer white space."""
    return _before_stop(text, model).strip()


def _before_stop(text: str, model: VisionLanguageModel) -> str:
    for stop in model.template.stop:
        text = text.split(stop)[0]
    return text


def embed_prompts(model: VisionLanguageModel, prompts: Sequence[Prompt], room: int) -> list[Float[Tensor, "1 _ E"]]:
    """Prompts as embeddings, their pictures spliced in; all pictures go through the vision backbone together.

    Args:
        model: The model.
        prompts: The conversations.
        room: Tokens that must still fit behind each.

    Raises:
        DataFormatError: If placeholders and pictures disagree, a prompt has no tokens, or the context is too short.
    """
    rows, pixels, counts = [], [], []
    for prompt in prompts:
        check_placeholders(prompt)
        tiled = [to_tiles(image, model.image_policy) for image in prompt.images]
        rows.append(_encode(model, prompt.messages, [model.tokens_per_image(layout) for _, layout in tiled]))
        if rows[-1].shape[1] == 0:
            raise DataFormatError(f"The prompt has no tokens: the chat template {model.template.name!r} has no place for text. Give a picture.")
        check_room(rows[-1].shape[1], room, model)
        pixels += [tiles for tiles, _ in tiled]
        counts.append(sum(layout.num_tiles for _, layout in tiled))
    texts = [model.language.embed(ids) for ids in rows]
    if not pixels:
        return texts
    images = model.encode_images(torch.cat(pixels).to(model.device)).split(counts)
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


def check_room(length: int, room: int, model: VisionLanguageModel) -> None:
    """Compare a prompt and its longest answer with the context.

    Raises:
        DataFormatError: If they do not fit.
    """
    if length + room > model.language.max_length:
        raise DataFormatError(
            f"The prompt has {length} tokens and the answer may have {room}; the language model reads {model.language.max_length}. "
            "Shorten the conversation, or lower max_new_tokens."
        )


def _encode(model: VisionLanguageModel, messages: Sequence[Message], tokens_per_image: Sequence[int]) -> Int[Tensor, "1 T"]:
    language = model.language
    encoded = encode_chat(
        messages, template=language.template, tokenizer=language.tokenizer, image_token_id=language.image_token_id, tokens_per_image=tokens_per_image
    )
    return torch.as_tensor(encoded.ids, device=model.device).unsqueeze(0)


def left_padded(rows: Sequence[Float[Tensor, "1 _ E"]]) -> tuple[Float[Tensor, "B T E"], Int[Tensor, "B T"]]:
    """Rows of different lengths as one batch, aligned at the end, and its attention mask."""
    longest = max(row.shape[1] for row in rows)
    embeds = torch.cat([torch.nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - row.shape[1] for row in rows]).long()
    return embeds, mask.to(embeds.device)


@torch.inference_mode()
def answer_log_probs(model: VisionLanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "B answers"]:
    """Log-probability of each answer, its end token included, as the answer to each prompt; answers share the work of what they begin with alike.

    Raises:
        DataFormatError: See `generate`.
    """
    continued = [answer_ids(model, prompts[0], answer).tolist() for answer in answers]
    tree = AnswerTree.of(continued)
    embeds, mask = left_padded(embed_prompts(model, prompts, max(map(len, continued))))
    hidden = node_states(model.language, embeds, mask, tree)
    behind = torch.tensor([node for path in tree.paths for node in path], device=hidden.device)
    spoken = torch.tensor([token for ids in continued for token in ids], device=hidden.device)
    rows = []
    for states in hidden:  # one prompt at a time: the scores of all nodes over the vocabulary are large
        scores = model.language.logits(states).float().log_softmax(-1)
        rows.append(torch.stack([part.sum() for part in scores[behind, spoken].split([len(ids) for ids in continued])]))
    return torch.stack(rows)


def answer_ids(model: VisionLanguageModel, prompt: Prompt, answer: str) -> Int[Tensor, " L"]:
    """Token ids of an answer behind a prompt, end token included."""
    counts = [1] * len(prompt.images)  # the answer's tokens do not depend on the number of image tokens before them
    before = _encode(model, prompt.messages, counts)
    after = _encode(model, (*prompt.messages, Message("assistant", answer)), counts)
    return after[0, before.shape[1] :]

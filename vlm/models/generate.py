"""Pictures and text in, text out: splice, left padding, and transformers' own `generate`; no sampling loop of ours.

Knows the model and the data encoding; not where either came from, nor who asks.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vlm.data.chat import encode_chat
from vlm.data.image import to_tiles
from vlm.errors import DataFormatError
from vlm.models.splice import splice
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import IMAGE_PLACEHOLDER, Message, count_placeholders


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user turn, and its pictures in the order of their `<image>` placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 for the most likely token each time; else the softmax temperature.
        top_p: Share of the probability mass that is drawn from, 0 to 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


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
        DataFormatError: If placeholders and pictures disagree, or a prompt and its answer could exceed the context.
    """
    embeds, mask = left_padded([embed_prompt(model, prompt, sampling.max_new_tokens) for prompt in prompts])
    ids = model.language.generate(embeds, mask, **settings(model, sampling))
    texts = model.language.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [trim(text, model) for text in texts]


def stream(model: VisionLanguageModel, prompt: Prompt, sampling: Sampling = GREEDY) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is generated.

    Raises:
        DataFormatError: See `generate`; raised before the first piece.
    """
    from transformers import TextIteratorStreamer

    with torch.inference_mode():
        embeds, mask = left_padded([embed_prompt(model, prompt, sampling.max_new_tokens)])
    streamer = TextIteratorStreamer(model.language.tokenizer, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                model.language.generate(embeds, mask, streamer=streamer, **settings(model, sampling))
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


def settings(model: VisionLanguageModel, sampling: Sampling) -> dict[str, Any]:
    """transformers' generation arguments."""
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {"do_sample": False}
    return {"max_new_tokens": sampling.max_new_tokens, **drawn}


def trim(text: str, model: VisionLanguageModel) -> str:
    """An answer without the template's stop strings and outer white space."""
    for stop in model.template.stop:
        text = text.split(stop)[0]
    return text.strip()


def embed_prompt(model: VisionLanguageModel, prompt: Prompt, room: int) -> Float[Tensor, "1 T E"]:
    """A prompt as embeddings, its pictures spliced in.

    Args:
        model: The model.
        prompt: The conversation.
        room: Tokens that must still fit behind it.

    Raises:
        DataFormatError: If placeholders and pictures disagree, or the context is too short.
    """
    if count_placeholders(prompt.messages) != len(prompt.images):
        raise DataFormatError(
            f"The conversation has {count_placeholders(prompt.messages)} {IMAGE_PLACEHOLDER} placeholders for {len(prompt.images)} pictures."
        )
    tiled = [to_tiles(image, model.image_policy) for image in prompt.images]
    ids = _encode(model, prompt.messages, [model.tokens_per_image(layout) for _, layout in tiled])
    if ids.shape[1] + room > model.language.max_length:
        raise DataFormatError(
            f"The prompt has {ids.shape[1]} tokens and the answer may have {room}; the language model reads {model.language.max_length}. "
            "Shorten the conversation, or lower max_new_tokens."
        )
    embeds = model.language.embed(ids)
    if not tiled:
        return embeds
    pixels = torch.cat([torch.as_tensor(tiles) for tiles, _ in tiled]).to(model.device)
    return splice(embeds, ids, model.encode_images(pixels), image_token_id=model.language.image_token_id)


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
    """Log-probability of each answer, its end token included, as the answer to each prompt.

    The prompts are run once; their cache is repeated for the answers.

    Raises:
        DataFormatError: See `generate`.
    """
    continued = [answer_ids(model, prompts[0], answer) for answer in answers]
    longest = max(len(ids) for ids in continued)
    embeds, mask = left_padded([embed_prompt(model, prompt, longest) for prompt in prompts])
    first, cache = model.language.step(embeds, mask, None)
    cache.batch_repeat_interleave(len(answers))
    ids = torch.nn.utils.rnn.pad_sequence(continued, batch_first=True).repeat(len(prompts), 1)  # [B * answers, L]
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in continued], batch_first=True).repeat(len(prompts), 1)
    seen = torch.cat([mask.repeat_interleave(len(answers), 0), real], dim=1)
    rest, _ = model.language.step(model.language.embed(ids), seen, cache)
    hidden = torch.cat([first[:, -1:].repeat_interleave(len(answers), 0), rest[:, :-1]], dim=1)  # position i predicts answer token i
    picked = real.bool()
    scores = model.language.logits(hidden[picked]).float().log_softmax(-1).gather(1, ids[picked].unsqueeze(1)).squeeze(1)
    totals = torch.zeros(ids.shape, dtype=scores.dtype, device=scores.device).masked_scatter(picked, scores).sum(1)
    return totals.view(len(prompts), len(answers))


def answer_ids(model: VisionLanguageModel, prompt: Prompt, answer: str) -> Int[Tensor, " L"]:
    """Token ids of an answer behind a prompt, end token included."""
    counts = [1] * len(prompt.images)  # the answer's tokens do not depend on the number of image tokens before them
    before = _encode(model, prompt.messages, counts)
    after = _encode(model, (*prompt.messages, Message("assistant", answer)), counts)
    return after[0, before.shape[1] :]

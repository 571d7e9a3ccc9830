"""Conversations to token ids and labels. Knows a chat template and a tokenizer, no family of either; opens no picture.

The rendered text is tokenized as a whole, so that training sees the tokens that inference will see, and labels follow from the tokens' places in the
text. Each `<image>` becomes K image-token ids: the rule of LLaVA in transformers (`LlavaProcessor`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vlm.errors import ConfigError, DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message, Span
from vlm.types import IGNORE_INDEX


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens.

    Attributes:
        ids: Token ids, each image expanded.
        labels: `ids` where the loss looks, IGNORE_INDEX elsewhere; not shifted.
    """

    ids: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]


def encode_chat(
    messages: Sequence[Message], *, template: ChatTemplate, tokenizer: Any, image_token_id: int, tokens_per_image: Sequence[int]
) -> Encoded:
    """Ids and labels of a conversation; one that ends with a user turn is an inference prompt and has no labels.

    Args:
        messages: The turns.
        template: How they are written, and what of it is trained.
        tokenizer: A fast tokenizer of transformers that has `<image>` as an added token.
        image_token_id: Id of `<image>`.
        tokens_per_image: Number of image tokens of each picture, in the order of the placeholders.

    Raises:
        DataFormatError: If placeholders and pictures differ in number, or roles do not alternate.
        ConfigError: If the tokenizer is not fast, has no `<image>` token, or has a token that crosses the border of a trained stretch.
    """
    spans = template.render(messages)
    text = "".join(span.text for span in spans)
    ids, offsets = _tokenize(text, tokenizer)
    is_image = ids == image_token_id
    _check_images(text, int(is_image.sum()), tokens_per_image)
    trained = _trained(offsets, spans, template) & (messages[-1].role == "assistant")
    labels = np.where(trained & ~is_image, ids, IGNORE_INDEX)
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[is_image] = tokens_per_image
    return Encoded(ids=torch.from_numpy(ids.repeat(repeats)), labels=torch.from_numpy(labels.repeat(repeats)))


def check_template(template: ChatTemplate, tokenizer: Any) -> None:
    """Make sure that prompts have the tokens in use that they had in training, on a conversation of plain words.

    Raises:
        ConfigError: If a prompt's tokens are not the first tokens of prompt and answer, or a token crosses the border of an answer.
    """
    talk = [Message(role, word) for role, word in (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))]
    for turns in (1, 3):
        prompt, whole = (
            encode_chat(talk[:end], template=template, tokenizer=tokenizer, image_token_id=-1, tokens_per_image=()).ids.tolist()
            for end in (turns, turns + 1)
        )
        if whole[: len(prompt)] != prompt:
            last = tokenizer.convert_ids_to_tokens(prompt)[-3:], tokenizer.convert_ids_to_tokens(whole[: len(prompt)])[-3:]
            raise ConfigError(
                f"Chat template {template.name!r} does not fit the tokenizer: a prompt ends with the tokens {last[0]}, which are {last[1]} when the "
                "answer follows, so the trained model would see other prompts than in training. Choose another template (`vlm list templates`)."
            )


def _tokenize(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; labels need the places of tokens in the text, which only fast ones tell."
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    return np.array(encoding["input_ids"], dtype=np.int64), np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)


def _check_images(text: str, num_tokens: int, tokens_per_image: Sequence[int]) -> None:
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if num_tokens != placeholders:
        raise ConfigError(
            f"The tokenizer made {num_tokens} image token(s) of {placeholders} {IMAGE_PLACEHOLDER!r}: it must be an added token. "
            f"Call tokenizer.add_special_tokens({{'additional_special_tokens': [{IMAGE_PLACEHOLDER!r}]}}), and pass its id."
        )
    if placeholders != len(tokens_per_image):
        raise DataFormatError(f"The conversation has {placeholders} {IMAGE_PLACEHOLDER} placeholder(s) and {len(tokens_per_image)} picture(s).")


def _trained(offsets: np.ndarray, spans: Sequence[Span], template: ChatTemplate) -> np.ndarray:
    """Which tokens lie in trained stretches, as booleans of shape [tokens].

    Raises:
        ConfigError: If a token lies in a trained stretch and outside it.
    """
    starts, ends = _extents(offsets)
    borders = np.cumsum([len(span.text) for span in spans])
    flags = np.array([span.trained for span in spans], dtype=bool)
    # A token without characters (sentencepiece's dummy space) belongs to what follows it, as it does when the text before it is tokenized alone.
    first = np.searchsorted(borders, starts, side="right").clip(max=len(spans) - 1)
    last = np.searchsorted(borders, np.maximum(ends - 1, starts), side="right").clip(max=len(spans) - 1)
    for i in np.flatnonzero(first != last):
        if len(set(flags[first[i] : last[i] + 1])) > 1:
            text = "".join(span.text for span in spans)
            raise ConfigError(
                f"Chat template {template.name!r} does not fit the tokenizer: one token is {text[starts[i] : ends[i]]!r} in "
                f"{text[max(0, starts[i] - 20) : ends[i] + 20]!r}, and only a part of it is trained. Let answers start and end where tokens do: "
                "with a space, a line break or a special token, and without outer white space in the data."
            )
    return flags[first]


def _extents(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each token in the text, in characters, without gaps.

    Byte-level tokenizers leave leading spaces out of the offsets (`trim_offsets`): a token then starts where the one before it ended. The tokens of
    one multi-byte character all name that character: they keep its place.
    """
    ends = offsets[:, 1]
    before = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return np.minimum(offsets[:, 0], before), ends

"""Conversations to token ids and labels. Knows a chat template and a tokenizer, no family of either; opens no picture.

The rendered text is tokenized as a whole, so that training sees the tokens that inference will see, and labels follow from the tokens' places in the
text. Each `<image>` becomes K image-token ids: the rule of LLaVA in transformers (`LlavaProcessor`). Special tokens that somebody types, such as
`</s>` or `<|im_end|>` in a question, become the special tokens themselves, as in LLaVA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vlm.errors import ConfigError, DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, ChatTemplate, Message, Span, count_placeholders
from vlm.types import IGNORE_INDEX


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens.

    Attributes:
        ids: Token ids, each image expanded.
        labels: `ids` where the loss looks, IGNORE_INDEX elsewhere; not shifted.
        num_images: How many pictures are still used: the first ones, as truncation takes from the end.
        dropped_turns: Messages that truncation left out.
        cut_tokens: Tokens that truncation cut from the end of what stayed.
        hidden: Places of tokens that no token attends to.
    """

    ids: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]
    num_images: int
    dropped_turns: int = 0
    cut_tokens: int = 0
    hidden: tuple[int, ...] = ()

    @property
    def num_labels(self) -> int:
        """Number of trained tokens."""
        return int((self.labels != IGNORE_INDEX).sum())

    def shared_length(self, image_token_id: int) -> int:
        """Tokens that other conversations about the same pictures may begin with: up to the last image token, 0 if one of them is trained."""
        images = (self.ids == image_token_id).nonzero()
        end = int(images[-1]) + 1 if len(images) else 0
        return 0 if (self.labels[:end] != IGNORE_INDEX).any() else end


def encode_chat(
    messages: Sequence[Message],
    *,
    template: ChatTemplate,
    tokenizer: Any,
    image_token_id: int,
    tokens_per_image: Sequence[int],
    max_length: int | None = None,
) -> Encoded:
    """Ids and labels of a conversation; one that ends with a user turn or a tool's result is an inference prompt and has no labels.

    What is longer than `max_length` loses its last exchanges, each a user turn and all up to the next one; of the first exchange, the text of the
    last answer is cut. A document is cut anywhere but inside a picture. A prompt is never shortened.

    Args:
        messages: The turns.
        template: How they are written, and what of it is trained.
        tokenizer: A fast tokenizer of transformers that has `<image>` as an added token.
        image_token_id: Id of `<image>`.
        tokens_per_image: Number of image tokens of each picture, in the order of the placeholders; positive.
        max_length: Most tokens, those of pictures among them, at least 1; None for no limit.

    Raises:
        DataFormatError: If placeholders and pictures differ in number, roles do not alternate, or what must stay is longer than `max_length`.
        ConfigError: If the tokenizer is not fast, has no `<image>` token, or has a token that crosses the border of a trained stretch.
    """
    spans, answered = template.render(messages), messages[-1].role in ("assistant", "document")
    ids, starts, ends = _tokenize(spans, template, tokenizer, image_token_id)
    trained = _trained(starts, ends, ids, spans, template, tokenizer) & answered
    placeholders = sum(span.text.count(IMAGE_PLACEHOLDER) for span in spans)
    if template.image_place == "first-token" and (placeholders := count_placeholders(messages)):
        ids, starts, trained = _with_first_image(ids, starts, trained, placeholders, template, image_token_id)
    is_image = ids == image_token_id
    _check_images(placeholders, int(is_image.sum()), tokens_per_image)
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[is_image] = tokens_per_image
    labels = np.where(trained & ~is_image, ids, IGNORE_INDEX)
    length, kept = int(repeats.sum()), len(ids)
    if max_length is not None and length > max_length:
        turns = _turns_that_fit(messages, spans, starts, lengths := repeats.cumsum(), max_length)
        if turns < len(messages):
            shorter = encode_chat(
                messages[:turns],
                template=template,
                tokenizer=tokenizer,
                image_token_id=image_token_id,
                tokens_per_image=tokens_per_image[: count_placeholders(messages[:turns])],
                max_length=max_length,
            )
            return replace(shorter, dropped_turns=shorter.dropped_turns + len(messages) - turns)
        kept = _tokens_that_fit(messages, labels, lengths, max_length)
        ids, labels, is_image, repeats = ids[:kept], labels[:kept], is_image[:kept], repeats[:kept]
    ids = ids.repeat(repeats)
    return Encoded(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels.repeat(repeats)),
        num_images=int(is_image.sum()),
        cut_tokens=length - int(repeats.sum()),
        hidden=tuple((ids == tokenizer.eos_token_id).nonzero()[0].tolist()) if template.hides_ends and answered else (),
    )


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


def _tokenize(spans: Sequence[Span], template: ChatTemplate, tokenizer: Any, image_token_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of a conversation, and where each token starts and ends in its text, in characters."""
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; labels need the places of tokens in the text, which only fast ones tell."
        )
    texts = ["".join(span.text for span in chunk) for chunk in template.chunks(spans)]
    parts, before = [], 0
    for text in texts or [""]:  # of a picture alone nothing is written
        ids, offsets = _tokenize_text(text.rstrip() if template.tokenized == "stripped-turns" else text, tokenizer)
        offsets += before
        parts.append((ids, *_extents(offsets, before)))
        before += len(text)
    ids, starts, ends = parts[0] if len(parts) == 1 else (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    behind = (ids[:-1] == image_token_id).nonzero()[0] + 1
    starts[behind] = ends[behind - 1]  # not within the placeholder, where a tokenizer that puts a space behind pictures places that space
    return ids, starts, ends


def _tokenize_text(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    bos = tokenizer.bos_token
    opening = bos if bos and text.startswith(bos) and opens_once(tokenizer) else ""
    encoding = tokenizer(text[len(opening) :], add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    ids, offsets = encoding["input_ids"], chain.from_iterable(encoding["offset_mapping"])
    if opening:
        ids, offsets = [tokenizer.bos_token_id, *ids], chain((-len(opening), 0), offsets)
    # `fromiter`: twice as fast as an array from a list of pairs
    places = np.fromiter(offsets, dtype=np.int64, count=2 * len(ids)).reshape(-1, 2)
    places += len(opening)
    return np.array(ids, dtype=np.int64), places


def opens_once(tokenizer: Any) -> bool:
    """If the tokenizer puts a space before the text that it is given, and not before text behind special tokens: Llama 2's, Vicuna's.

    It puts BOS before that space itself, so text behind a BOS that a template writes is tokenized as a text by itself.
    """
    return getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", "") == "first"


def _with_first_image(
    ids: np.ndarray, starts: np.ndarray, trained: np.ndarray, placeholders: int, template: ChatTemplate, image_token_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture behind the first token, whose own label is lost.

    Raises:
        DataFormatError: If there are several pictures.
    """
    if placeholders > 1:
        raise DataFormatError(
            f"Chat template {template.name!r} puts the picture behind the first token, so a conversation has one at most; this one has {placeholders}. "
            "Ask about one picture, or use another template."
        )
    place = min(1, len(ids))
    trained = trained.copy()
    trained[:place] = False
    start = starts[place] if place < len(starts) else 0
    return np.insert(ids, place, image_token_id), np.insert(starts, place, start), np.insert(trained, place, False)


def _check_images(placeholders: int, num_tokens: int, tokens_per_image: Sequence[int]) -> None:
    if num_tokens != placeholders:
        raise ConfigError(
            f"The tokenizer made {num_tokens} image token(s) of {placeholders} {IMAGE_PLACEHOLDER!r}: it must be an added token. "
            f"Call tokenizer.add_special_tokens({{'additional_special_tokens': [{IMAGE_PLACEHOLDER!r}]}}), and pass its id."
        )
    if placeholders != len(tokens_per_image):
        raise DataFormatError(f"The conversation has {placeholders} {IMAGE_PLACEHOLDER} placeholder(s) and {len(tokens_per_image)} picture(s).")


def _turns_that_fit(messages: Sequence[Message], spans: Sequence[Span], starts: np.ndarray, lengths: np.ndarray, max_length: int) -> int:
    """How many messages stay if whole exchanges go from the end, at least those of the first one; all of a document or of a single exchange.

    Args:
        messages: The turns.
        spans: What they are written as.
        starts: First character of each token.
        lengths: Length of the conversation up to and with each token, images expanded.
        max_length: Most tokens.

    Raises:
        DataFormatError: If the conversation is a prompt.
    """
    if messages[-1].role not in ("assistant", "document"):
        raise DataFormatError(f"The prompt has {lengths[-1]} tokens, and {max_length} are allowed. Shorten it, or start a new conversation.")
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    answer_ends = [end for end, span in zip(accumulate(len(span.text) for span in spans), spans, strict=True) if span.trained]
    turns = len(messages)
    for later in reversed(asked[1:]):
        turns = later
        answers = sum(message.role == "assistant" for message in messages[:turns])
        num_tokens = int(np.searchsorted(starts, answer_ends[answers - 1]))
        if lengths[num_tokens - 1] <= max_length:
            break
    return turns


def _tokens_that_fit(messages: Sequence[Message], labels: np.ndarray, lengths: np.ndarray, max_length: int) -> int:
    """How many tokens stay, an image counted as one, of a document or of a single exchange.

    Raises:
        DataFormatError: If nothing trained would stay, or the cut would lie before the last answer or before an image in it.
    """
    trained = labels != IGNORE_INDEX
    if messages[0].role == "document":
        what, least = "document up to its first trained token", int(trained.argmax()) + 1
    else:
        what, least = "first exchange up to the first token of its answer", int(np.flatnonzero(~trained).max(initial=-1)) + 2
    kept = int(np.searchsorted(lengths, max_length, side="right"))
    if kept < least:
        raise DataFormatError(
            f"The {what}, pictures included, has {lengths[min(least, len(lengths)) - 1]} tokens, and {max_length} are allowed. "
            "Raise --stage.max-length if the language model's context allows it, or leave the sample out."
        )
    return kept


def _trained(starts: np.ndarray, ends: np.ndarray, ids: np.ndarray, spans: Sequence[Span], template: ChatTemplate, tokenizer: Any) -> np.ndarray:
    """Which tokens lie in trained stretches, as booleans of shape [tokens].

    Raises:
        ConfigError: If a token lies in a trained stretch and outside it.
    """
    borders = np.cumsum([len(span.text) for span in spans])
    flags = np.array([span.trained for span in spans], dtype=bool)
    # A token without characters (sentencepiece's dummy space) belongs to what follows it, as it does when the text before it is tokenized alone.
    first = np.minimum(np.searchsorted(borders, starts, side="right"), len(spans) - 1)
    last = np.minimum(np.searchsorted(borders, np.maximum(ends - 1, starts), side="right"), len(spans) - 1)
    for i in np.flatnonzero(first != last):
        if len(set(flags[first[i] : last[i] + 1])) > 1 and not _swallows_space(int(ids[i]), tokenizer):
            text = "".join(span.text for span in spans)
            raise ConfigError(
                f"Chat template {template.name!r} does not fit the tokenizer: one token is {text[starts[i] : ends[i]]!r} in "
                f"{text[max(0, starts[i] - 20) : ends[i] + 20]!r}, and only a part of it is trained. Let answers start and end where tokens do: "
                "with a space, a line break or a special token."
            )
    return flags[first]


def _swallows_space(token: int, tokenizer: Any) -> bool:
    """If a special token takes the white space behind it into itself (Phi-3's `<|end|>` does): its own text lies where it starts."""
    return (added := tokenizer.added_tokens_decoder.get(token)) is not None and added.rstrip


def _extents(offsets: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each token in the text, in characters, without gaps; the first begins at `start` or before.

    Byte-level tokenizers leave leading spaces out of the offsets (`trim_offsets`): a token then starts where the one before it ended. The tokens of
    one multi-byte character all name that character: they keep its place.
    """
    ends = offsets[:, 1]
    before = np.empty_like(ends)
    before[:1], before[1:] = start, ends[:-1]
    return np.minimum(offsets[:, 0], before), ends

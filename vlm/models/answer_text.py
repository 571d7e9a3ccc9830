"""Tokens of an answer to text: piece by piece as they come, and up to the first stop string. Knows a tokenizer; neither models nor prompts.

Text is decoded as it was generated: no "clean-up" of spaces before punctuation, which some tokenizers' files ask for and which changes code and numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BROKEN = "\ufffd"  # what an incomplete UTF-8 character is decoded as
MARGIN = 8  # tokens before a stop string that are decoded with it: special ones have no text, and the first one loses its space


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, special ones left out."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop string in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def pieces_of(tokens: Iterable[int], tokenizer: Any) -> Iterator[str]:
    """Text as soon as it is certain: joined, it is the text of all tokens."""
    text = GrowingText(tokenizer)
    for token in tokens:
        if piece := text.take(token):
            yield piece
    if rest := text.rest():
        yield rest


class GrowingText:
    """Tokens to text, one by one.

    A token's text depends on the tokens before it (spaces, characters of several tokens), so each is decoded together with those of the last piece:
    the scheme of text-generation-inference and vLLM (`detokenize_incrementally`). transformers' `TextStreamer` starts anew at each line, and loses
    the first space of it where the tokenizer is a SentencePiece one.
    """

    def __init__(self, tokenizer: Any):
        """Begin without a token.

        Args:
            tokenizer: Of the model.
        """
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.known, self.read = 0, 0  # tokens before `known` are done with; those before `read` are told

    def take(self, token: int) -> str:
        """The text that has become certain with one more token, often none."""
        self.ids.append(token)
        new = self.rest()
        if not new or new.endswith(BROKEN):
            return ""
        self.known, self.read = self.read, len(self.ids)
        return new

    def rest(self) -> str:
        """What is not told yet, certain or not."""
        told, now = decode(self.tokenizer, self.ids[self.known : self.read]), decode(self.tokenizer, self.ids[self.known :])
        return now[len(told) :]


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces up to the first stop string; what could be the beginning of one is held back until it is known not to be."""
    text = StoppedText(stops)
    for piece in pieces:
        if told := text.take(piece):
            yield told
        if text.stopped:
            return
    if text.held:
        yield text.held


class StoppedText:
    """Pieces up to the first stop string, one by one.

    Attributes:
        stopped: A stop string has come.
        held: What could be the beginning of one.
    """

    def __init__(self, stops: Sequence[str]):
        """Begin without a piece.

        Args:
            stops: Stop strings.
        """
        self.stops, self.stopped, self.held = stops, False, ""

    def take(self, piece: str) -> str:
        """What is certain to stand before a stop string, with one more piece."""
        text = self.held + piece
        told = cut(text, self.stops)
        self.stopped = told != text
        safe = len(told) if self.stopped else len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = "" if self.stopped else text[safe:]
        return text[:safe]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string begins with."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length])), 0)


class EndsWithStop:
    """A stopping criterion of transformers' `generate`: rows whose last tokens hold a stop string are done.

    It only saves tokens: `cut` decides what the answer is. transformers' own `stop_strings` first matches every token of the vocabulary with the
    stop strings, which costs seconds for each new one.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]):
        """Look for these.

        Args:
            tokenizer: Of the model.
            stops: Stop strings.
        """
        self.tokenizer, self.stops = tokenizer, stops
        self.most_tokens = MARGIN + max(len(stop.encode()) for stop in stops)  # a token with text holds a byte at least

    def __call__(self, ids: Int[Tensor, "B T"], scores: Any, **_: Any) -> Bool[Tensor, " B"]:
        """Which rows are done."""
        tails = [decode(self.tokenizer, row) for row in ids[:, -self.most_tokens :].tolist()]
        return torch.tensor([any(stop in tail for stop in self.stops) for tail in tails], device=ids.device)

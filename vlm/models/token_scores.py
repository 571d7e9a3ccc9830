"""How likely each token of an answer was when it came, and which others were likely: what OpenAI's API calls logprobs.

Knows a tokenizer and the scores of one step; neither prompts nor how tokens are drawn.
"""

import re
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vlm.models.answer_text import BROKEN

BYTE = re.compile(r"<0x([\dA-F]{2})>")  # SentencePiece's token of a single byte


@dataclass(frozen=True)
class Candidate:
    """A token that could come next.

    Attributes:
        utf8: Its text, which may be a part of a character alone.
        log_prob: Natural logarithm of its probability, by the model's own scores: before temperature, penalty and whatever else changes the draw.
    """

    utf8: bytes
    log_prob: float


@dataclass(frozen=True)
class Step:
    """One token of an answer, and the likeliest ones at its place, the likeliest first."""

    token: Candidate
    likeliest: tuple[Candidate, ...]


class StepScores:
    """A logits processor of transformers that changes nothing: as the first, it sees the model's own scores, and keeps those of the last step alone."""

    def __init__(self, tokenizer: Any):
        """See nothing yet.

        Args:
            tokenizer: Of the model.
        """
        self.text = TokenText(tokenizer)

    def __call__(self, ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The scores, as they are."""
        self.scores = scores
        return scores

    def step(self, row: int, token: int, num: int) -> Step:
        """What the last step was to one row.

        Args:
            row: Its place in the batch.
            token: What has been drawn.
            num: How many of the likeliest tokens are told with it, from 0.
        """
        log_probs = self.scores[row].log_softmax(-1)
        top = log_probs.topk(num)
        likeliest = map(Candidate, map(self.text.utf8, top.indices.tolist()), top.values.tolist())
        return Step(Candidate(self.text.utf8(token), float(log_probs[token])), tuple(likeliest))


class TokenText:
    """The text of single tokens, as they are behind others: decoded alone, SentencePiece's would lose their space."""

    def __init__(self, tokenizer: Any):
        """Take a token to put before the others.

        Args:
            tokenizer: A fast one of transformers, of bytes (GPT-2's way) or of SentencePiece.
        """
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self.tokenizer = tokenizer
        self.before = tokenizer("a", add_special_tokens=False).input_ids
        self.skipped = len(self._decode(self.before))
        self.byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def utf8(self, token: int) -> bytes:
        """A token's text, special ones' included; nothing for one that the vocabulary lacks."""
        text = self._decode([*self.before, token])[self.skipped :]
        if BROKEN not in text:
            return text.encode()
        name = self.tokenizer.convert_ids_to_tokens(token)
        if single := BYTE.fullmatch(name):
            return bytes.fromhex(single[1])
        return bytes(self.byte_of[letter] for letter in name) if set(name) <= self.byte_of.keys() else text.encode()

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

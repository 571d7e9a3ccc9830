"""Answers to a batch, each row told as it grows and released as it ends; generation itself is transformers' own. Knows no server.

Rows share how tokens are drawn; length, seed, stop strings and listener are each row's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm.models.answer_text import GrowingText, StoppedText, decode
from vlm.models.generate import PreparedPrompt, embed_prepared, left_padded, trim
from vlm.models.sampling import Sampling, settings
from vlm.models.token_scores import Step, StepScores
from vlm.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Piece:
    """What an answer has gained.

    Attributes:
        text: The new text; the texts of all pieces together are the answer, without outer white space.
        finish: Empty while the answer goes on; at its last piece `stop` (by the model, or a stop string) or `length`.
        num_tokens: Tokens of the answer so far, its end token included.
        steps: Each token that is new since the piece before, if they were asked for.
    """

    text: str
    finish: str = ""
    num_tokens: int = 0
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Ask:
    """One row of a batch.

    Attributes:
        prompt: What is asked.
        sampling: How the answer is drawn, and how long it may be.
        tell: Called with each piece, from the thread that generates; must not block.
        streamed: Tell pieces as they come, instead of the whole answer at its end.
        is_gone: True once nobody waits for the answer any more; the row then ends without another piece.
        logprobs: Tell how likely each token was, and so many of the likeliest at its place; None for neither.
    """

    prompt: PreparedPrompt
    sampling: Sampling
    tell: Callable[[Piece], None]
    streamed: bool = False
    is_gone: Callable[[], bool] = lambda: False
    logprobs: int | None = None


def shared(sampling: Sampling) -> Sampling:
    """What the rows of one batch must have in common: how tokens are drawn, but for what each row has of its own or does not use."""
    common = replace(sampling, max_new_tokens=1, seed=None, stop=())
    return replace(common, top_p=1.0, top_k=0) if sampling.temperature == 0 else common


@torch.inference_mode()
def answer(model: VisionLanguageModel, asks: Sequence[Ask]) -> None:
    """Answer a batch; every row that somebody waits for gets a last piece, and those of different length get it at different times.

    Args:
        model: The model.
        asks: The rows; at least one. Their samplings agree by `shared`.
    """
    from transformers import StoppingCriteriaList

    embeds, mask = left_padded(embed_prepared(model, [ask.prompt for ask in asks]))
    rows = _Rows(model, asks)
    longest = replace(shared(asks[0].sampling), max_new_tokens=max(ask.sampling.max_new_tokens for ask in asks))
    drawn = settings(model, longest, len(asks), seeds=[ask.sampling.seed for ask in asks])
    if rows.scores is not None:
        drawn["logits_processor"].insert(0, rows.scores)
    model.language.generate(embeds, mask, stopping_criteria=StoppingCriteriaList([rows]), **drawn)


class _Rows:
    """A stopping criterion of transformers: called after each step with all new tokens, it tells what is new and says which rows have ended."""

    def __init__(self, model: VisionLanguageModel, asks: Sequence[Ask]):
        self.scores = StepScores(model.language.tokenizer) if any(ask.logprobs is not None for ask in asks) else None
        self.rows = [_Row(model, ask, self._step_of(i, ask.logprobs)) for i, ask in enumerate(asks)]

    def _step_of(self, row: int, logprobs: int | None) -> Callable[[int], Step] | None:
        return None if self.scores is None or logprobs is None else partial(self.scores.step, row, num=logprobs)

    def __call__(self, ids: Int[Tensor, "B new"], scores: Any, **_: Any) -> Bool[Tensor, " B"]:
        for row, token in zip(self.rows, ids[:, -1].tolist(), strict=True):
            row.take(token)
        return torch.tensor([row.ended for row in self.rows], device=ids.device)


class _Row:
    def __init__(self, model: VisionLanguageModel, ask: Ask, step: Callable[[int], Step] | None):
        self.model, self.ask, self.step, self.ended = model, ask, step, False
        self.tokens: list[int] = []
        self.steps: list[Step] = []  # that are not told
        self.ends = set(model.language.model.generation_config.eos_token_id)
        self.growing = GrowingText(model.language.tokenizer)
        self.stopping = StoppedText((*model.template.stop, *ask.sampling.stop))
        self.text = ""  # that is certain
        self.told = 0  # characters of it

    def take(self, token: int) -> None:
        """One more token; those that come after the end are padding."""
        if self.ended:
            return
        if self.ask.is_gone():
            self.ended = True
            return
        self.tokens.append(token)
        if self.step is not None:
            self.steps.append(self.step(token))
        if self.ask.streamed or self.ask.sampling.stop:
            self.text += self.stopping.take(self.growing.take(token))
        if token in self.ends or self.stopping.stopped:
            self._end("stop")
        elif len(self.tokens) == self.ask.sampling.max_new_tokens:
            self._end("length")
        elif self.ask.streamed:
            self._tell_new()

    def _tell_new(self) -> None:
        """White space waits for what follows it, because it is no part of the answer's end."""
        visible = self.text.strip()
        if len(visible) > self.told:
            self._tell(visible)

    def _end(self, finish: str) -> None:
        self.ended = True
        whole = trim(decode(self.model.language.tokenizer, self.tokens), self.model, self.ask.sampling)
        self._tell(whole, finish)

    def _tell(self, text: str, finish: str = "") -> None:
        self.ask.tell(Piece(text[self.told :], finish, len(self.tokens), tuple(self.steps)))
        self.told = len(text)
        self.steps.clear()

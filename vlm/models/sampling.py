"""How answers are drawn, and what that means to transformers' `generate`. Knows neither prompts nor pictures.

Processors are passed to `generate` ready-made, for two reasons. Drawing by a generator of each row makes an answer independent of the other rows
and of the process's random state. And transformers' own `repetition_penalty`, on embeddings with left padding, passes over the first tokens of the
answer, as many as the row has padding (`prompt_ignore_length`, seen in 5.23), so a batch would answer otherwise than each prompt alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.distributed.shard import is_sharded
from vlm.errors import ConfigError

LOWEST_TEMPERATURE = 1e-6  # scores that are divided by much less are beyond fp32, and leave no distribution to draw from


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Longest answer, in tokens, at least 1.
        temperature: 0 for the most likely token each time; else the softmax temperature, at least LOWEST_TEMPERATURE.
        top_p: Share of the probability mass that is drawn from, above 0, to 1.
        top_k: Number of the most likely tokens that are drawn from; 0 for all.
        repetition_penalty: What the scores of tokens that the answer has already are divided by (multiplied, where negative); 1 for none (CTRL,
            arXiv:1909.05858, section 4.1).
        num_beams: Beams of a beam search; 1 for none. Only at temperature 0.
        seed: Makes draws repeatable: the same prompt gets the same answer, whatever else is in its batch. None: drawn from torch's random state.
        stop: Texts that end an answer and are not part of it; one text or several, each of any number of tokens.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int | None = None
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; an answer has at least 1 token.")
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0, which takes the most likely token each time, or finite and at least {LOWEST_TEMPERATURE}."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be at least 1, or 0 for all tokens.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; it must be finite and above 0, and 1 is none.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2^63.")
        if "" in self.stop:
            raise ConfigError(f"stop is {self.stop!r}; an empty text would end every answer before it begins.")
        self._check_beams()

    def _check_beams(self) -> None:
        if self.num_beams < 1:
            raise ConfigError(f"num_beams is {self.num_beams}; it must be at least 1, and 1 is no beam search.")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError(f"num_beams is {self.num_beams}; a beam search draws nothing. Set temperature to 0, or num_beams to 1.")

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that were given and change nothing, because nothing is drawn at temperature 0."""
        drawing = {"top_p", "top_k", "seed"} if self.temperature == 0 else set()
        return tuple(field.name for field in fields(self) if field.name in drawing and getattr(self, field.name) != field.default)


GREEDY = Sampling()


class Draw:
    """A draw from the softmax of each row's scores, left as the only token with a finite score (the exponential race, as in `torch.multinomial`)."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        """One random generator for each row.

        Args:
            seeds: Their seeds.
            device: Where the scores will be.
        """
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Scores that are 0 at the token that was drawn, and minus infinity elsewhere."""
        waits = torch.stack([torch.empty_like(row).exponential_(generator=mine) for row, mine in zip(scores, self.generators, strict=True)])
        drawn = (scores.softmax(-1) / waits).argmax(-1, keepdim=True)
        return torch.full_like(scores, -math.inf).scatter_(1, drawn, 0.0)


def settings(model: nn.Module, sampling: Sampling, rows: int, *, seeds: Sequence[int | None] = ()) -> dict[str, Any]:
    """transformers' generation arguments. Ranks that share a model stop together, because each needs the others in every forward pass.

    Args:
        model: A VisionLanguageModel.
        sampling: How answers are drawn.
        rows: Prompts in the batch.
        seeds: One for each row; none if the sampling's holds for all.
    """
    seeds = seeds or [sampling.seed] * rows
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "synced_gpus": is_sharded(model),
        "do_sample": False,  # `Draw` leaves one token to choose
        "num_beams": sampling.num_beams,
        "logits_processor": _processors(sampling, seeds, next(model.parameters()).device),
    }


def _processors(sampling: Sampling, seeds: Sequence[int | None], device: torch.device) -> Any:
    """What happens to the scores of the next token, in transformers' order."""
    from transformers.generation import logits_process as hf

    steps: Any = hf.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return steps
    steps.append(hf.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(hf.TopPLogitsWarper(sampling.top_p))
    drawn = [int(torch.randint(2**63 - 1, ())) if seed is None else seed for seed in seeds]
    return hf.LogitsProcessorList([*steps, Draw(drawn, device)])

"""How likely a model finds given answers: yes or no, letters of a choice, captions. Knows the model and prompts; not where the answers came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.errors import DataFormatError
from vlm.messages import Message
from vlm.models.answer_tree import AnswerTree, node_states
from vlm.models.generate import Prompt, check_characters, embed_prompts, encode_prompt, left_padded
from vlm.models.token_scores import TokenText
from vlm.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class AnswerScore:
    """Log-probability of one answer to one prompt, the token that ends the answer included.

    Attributes:
        answer: The answer.
        log_prob: Natural logarithm of the probability of the whole answer: the sum of those of its tokens.
        tokens: The answer's tokens as text.
        token_log_probs: Log-probability of each token behind those before it.
    """

    answer: str
    log_prob: float
    tokens: tuple[str, ...]
    token_log_probs: tuple[float, ...]

    @property
    def mean_log_prob(self) -> float:
        """Log-probability for each token, which does not favor short answers."""
        return self.log_prob / len(self.token_log_probs)


def score(model: VisionLanguageModel, prompt: Prompt, answers: Sequence[str]) -> list[AnswerScore]:
    """How likely each answer to a prompt is, in one forward pass; in the order given.

    Raises:
        DataFormatError: If there is no answer, the answers are one text, or see `vlm.models.generate.generate`.
    """
    if isinstance(answers, str):
        raise DataFormatError(f"The answers are one text, {answers!r}; give a list of texts.")
    (rows,) = token_log_probs(model, [prompt], answers)
    text = TokenText(model.language.tokenizer)
    return [
        AnswerScore(
            answer=answer,
            log_prob=float(row.sum()),
            tokens=tuple(text.utf8(token).decode(errors="replace") for token in answer_ids(model, prompt, answer).tolist()),
            token_log_probs=tuple(row.tolist()),
        )
        for answer, row in zip(answers, rows, strict=True)
    ]


def answer_log_probs(model: VisionLanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "B answers"]:
    """Log-probability of each answer, its end token included, as the answer to each prompt.

    Raises:
        DataFormatError: See `score`.
    """
    return torch.stack([torch.stack([tokens.sum() for tokens in row]) for row in token_log_probs(model, prompts, answers)])


@torch.inference_mode()
def token_log_probs(model: VisionLanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[Float[Tensor, " _"], ...]]:
    """For each prompt and each answer, the log-probabilities of the answer's tokens; answers share the work of what they begin with alike.

    Raises:
        DataFormatError: See `score`.
    """
    if not answers:
        raise DataFormatError("There is no answer to score; give at least one.")
    continued = [answer_ids(model, prompts[0], answer).tolist() for answer in answers]
    embeds, mask = left_padded(embed_prompts(model, prompts, max(map(len, continued))))
    tree = AnswerTree.of(continued)
    hidden = node_states(model.language, embeds, mask, tree)
    behind = torch.tensor([node for path in tree.paths for node in path], device=hidden.device)
    spoken = torch.tensor([token for ids in continued for token in ids], device=hidden.device)
    rows = []
    for states in hidden:  # one prompt at a time: the scores of all nodes over the vocabulary are large
        scores = model.language.logits(states).float().log_softmax(-1)
        rows.append(scores[behind, spoken].split([len(ids) for ids in continued]))
    return rows


def answer_ids(model: VisionLanguageModel, prompt: Prompt, answer: str) -> Int[Tensor, " L"]:
    """Token ids of an answer behind a prompt, end token included.

    Raises:
        DataFormatError: If they are longer than the context however they are tokenized.
    """
    messages = (*prompt.messages, Message("assistant", answer))
    check_characters(messages, model)
    counts = [1] * len(prompt.images)  # the answer's tokens do not depend on the number of image tokens before them
    before = encode_prompt(model, prompt.messages, counts)
    after = encode_prompt(model, messages, counts)
    return after[0, before.shape[1] :]

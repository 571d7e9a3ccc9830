"""How questions are put to a model, and the model as far as evaluations know it: prompts go in, answers or log-probabilities come out.

Knows no benchmark's files and no metric.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm.data.image import load_image
from vlm.data.questions.base import Question
from vlm.errors import ConfigError, DataFormatError
from vlm.evaluate.validation import evaluating
from vlm.messages import IMAGE_PLACEHOLDER, Message
from vlm.models.generate import Prompt, Sampling, ask, generate
from vlm.models.score import answer_log_probs
from vlm.models.vision_language import VisionLanguageModel

FIELDS = ("question", "choices")
NUMBERED = re.compile(r"<image (\d+)>")


@dataclass(frozen=True)
class Wording:
    """What stands around a question.

    Attributes:
        prompt: A format with `{question}` and, for multiple choice, `{choices}`.
        choice: How an option is written, from `{letter}` and `{choice}`; options are lines.
        open_prompt: Format for questions without options; empty for `prompt`.
    """

    prompt: str
    choice: str = "{letter}. {choice}"
    open_prompt: str = ""

    def __post_init__(self) -> None:
        for text, fields in ((self.prompt, FIELDS), (self.choice, ("letter", "choice")), (self.open_prompt, FIELDS)):
            _check_fields(text, fields)

    def text(self, question: Question) -> str:
        """The user's turn."""
        form = self.prompt if question.choices or not self.open_prompt else self.open_prompt
        choices = [self.choice.format(letter=letter, choice=choice) for letter, choice in zip(question.letters, question.choices, strict=True)]
        return form.format(question=question.text, choices="\n".join(choices)).strip()


def _check_fields(text: str, known: Sequence[str]) -> None:
    try:
        unknown = sorted({name for _, name, *_ in string.Formatter().parse(text) if name is not None} - set(known))
    except ValueError as error:
        raise ConfigError(f"The prompt {text!r} is no format: {error}. Write {{{{ and }}}} for braces.") from None
    if unknown:
        raise ConfigError(f"The prompt {text!r} has {{{unknown[0]}}}; it may have {' and '.join(f'{{{name}}}' for name in known)}.")


def refuse_unasked(wording: Wording, questions: Sequence[Question]) -> None:
    """Make sure that a prompt leaves out neither the questions nor their options.

    Raises:
        ConfigError: If it does.
    """
    for question in questions:
        form = wording.prompt if question.choices or not wording.open_prompt else wording.open_prompt
        for field, there in (("question", question.text), ("choices", question.choices)):
            if there and f"{{{field}}}" not in form:
                raise ConfigError(f"The prompt {form!r} has no place for the {field} of {question.id!r}. Put {{{field}}} into it.")


def prompt_of(question: Question, wording: Wording) -> Prompt:
    """A question as a conversation of one turn, its pictures opened.

    Raises:
        DataFormatError: If a picture cannot be read, or placeholders and pictures differ.
    """
    text, files = wording.text(question), question.images
    if question.numbered and (numbers := [int(number) for number in NUMBERED.findall(text)]):
        text, files = NUMBERED.sub(IMAGE_PLACEHOLDER, text), tuple(question.images[number - 1] for number in numbers)
    history = [Message("system", question.system)] if question.system else []
    return ask(_opened(files), text, history=history)


def _opened(files: Sequence[Any]) -> list[Image.Image]:
    opened = {file: load_image(file) for file in dict.fromkeys(files)}  # a picture that is shown twice is read once
    return [opened[file] for file in files]


@runtime_checkable
class Answerer(Protocol):
    """A model that answers."""

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, /) -> list[str]:
        """Greedy answers."""
        ...

    def log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str], /) -> Float[Tensor, "B answers"]:
        """Log-probability of each answer to each prompt, end token included."""
        ...

    def write(self, messages: Sequence[Message], /) -> str:
        """A conversation as the model reads it, chat template and `<image>` placeholders included."""
        ...


@dataclass(frozen=True)
class ModelAnswerer:
    """An `Answerer` of a vision-language model."""

    model: VisionLanguageModel

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """See `Answerer`."""
        with evaluating(self.model):
            return generate(self.model, prompts, Sampling(max_new_tokens=max_new_tokens))

    def log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "B answers"]:
        """See `Answerer`."""
        with evaluating(self.model):
            return answer_log_probs(self.model, prompts, answers).float().cpu()

    def write(self, messages: Sequence[Message]) -> str:
        """See `Answerer`."""
        return "".join(span.text for span in self.model.template.render(messages))


@dataclass(frozen=True)
class Contender:
    """A model that is to be evaluated, not loaded yet.

    Attributes:
        name: What tables call it.
        identity: What its answers depend on: hashes of its weights, precision.
        open: Loads it.
    """

    name: str
    identity: Mapping[str, str]
    open: Callable[[], Answerer]


def refuse_equal_contenders(contenders: Sequence[Contender]) -> None:
    """Make sure that names tell models apart.

    Raises:
        ConfigError: If that is not so.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ConfigError(f"Name each model once; got {', '.join(names)}.")


def likeliest(answerer: Answerer, prompts: Sequence[Prompt], candidates: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """The most likely candidate for each prompt, and the log-probabilities of all.

    Raises:
        DataFormatError: If a log-probability is not finite.
    """
    scores = answerer.log_probs(prompts, candidates)
    if not scores.isfinite().all():
        raise DataFormatError("The model gave log-probabilities that are not finite. Half precision may have overflowed; try --precision fp32.")
    return [(candidates[int(row.argmax())], dict(zip(candidates, row.tolist(), strict=True))) for row in scores]

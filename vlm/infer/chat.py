"""A conversation about pictures: turns, pictures and the answer as it comes. Knows no terminal."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from vlm.messages import Message, count_placeholders
from vlm.models.generate import Prompt, Sampling, ask, stream
from vlm.models.vision_language import VisionLanguageModel


class Conversation:
    """Several turns with one model; pictures stay in the conversation."""

    def __init__(self, model: VisionLanguageModel, *, sampling: Sampling, system: str = ""):
        """Begin with nothing said.

        Args:
            model: The model.
            sampling: How answers are drawn.
            system: System text of the conversation; empty: the template's own, if it has one.

        Raises:
            DataFormatError: If the model's chat template has no place for a system text.
        """
        self.model, self.sampling = model, sampling
        self.system = (Message("system", system),) if system else ()
        model.template.render([*self.system, Message("user", "")])
        self.reset()

    def reset(self) -> None:
        """Forget all turns and pictures."""
        self.messages: tuple[Message, ...] = ()
        self.images: tuple[Image.Image, ...] = ()

    def undo(self) -> bool:
        """Forget the last question, its pictures and its answer; False if there is none."""
        had = bool(self.messages)
        self.messages = self.messages[:-2]
        self.images = self.images[: count_placeholders(self.messages)]
        return had

    def say(self, text: str, images: Any = ()) -> Iterator[str]:
        """Ask, and get the answer piece by piece; the turn is remembered once the answer is complete.

        Args:
            text: The question.
            images: Its pictures, as `vlm.data.given_picture.as_pictures` takes them.

        Raises:
            FetchError, DataFormatError: If a picture cannot be had, placeholders and pictures disagree, or the conversation has outgrown the context.
        """
        prompt = ask(images, text, history=(*self.system, *self.messages), earlier_images=self.images)
        pieces = []
        for piece in stream(self.model, prompt, self.sampling):
            pieces.append(piece)
            yield piece
        self._remember(prompt, "".join(pieces).strip())

    def _remember(self, prompt: Prompt, answer: str) -> None:
        self.messages = (*prompt.messages[len(self.system) :], Message("assistant", answer))
        self.images = prompt.images

"""A conversation about pictures: turns, pictures and the answer as it comes. Knows no terminal."""

from collections.abc import Iterator, Sequence

from PIL import Image

from vlm.messages import Message
from vlm.models.generate import Prompt, Sampling, ask, stream
from vlm.models.vision_language import VisionLanguageModel


class Conversation:
    """Several turns with one model; pictures stay in the conversation."""

    def __init__(self, model: VisionLanguageModel, *, sampling: Sampling):
        """Begin with nothing said.

        Args:
            model: The model.
            sampling: How answers are drawn.
        """
        self.model, self.sampling = model, sampling
        self.messages: tuple[Message, ...] = ()
        self.images: tuple[Image.Image, ...] = ()

    def say(self, text: str, images: Sequence[Image.Image] = ()) -> Iterator[str]:
        """Ask, and get the answer piece by piece; the turn is remembered once the answer is complete.

        Raises:
            DataFormatError: If placeholders and pictures disagree, or the conversation has outgrown the context.
        """
        prompt = ask(images, text, history=self.messages, earlier_images=self.images)
        pieces = []
        for piece in stream(self.model, prompt, self.sampling):
            pieces.append(piece)
            yield piece
        self._remember(prompt, "".join(pieces).strip())

    def _remember(self, prompt: Prompt, answer: str) -> None:
        self.messages, self.images = (*prompt.messages, Message("assistant", answer)), prompt.images

"""One conversation with its pictures, as every reader yields it. Knows no file format, no tokenizer and no pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlm.errors import DataFormatError
from vlm.types import IMAGE_PLACEHOLDER, Message, count_placeholders


@dataclass(frozen=True)
class Sample:
    """One conversation; its `<image>` placeholders, in reading order, stand for `images`.

    Attributes:
        id: Name of the sample in its dataset, for messages.
        images: Picture files.
        messages: The turns.
        extra: What evaluations want to know besides, such as the type of a question.

    Raises:
        DataFormatError: If the number of placeholders is not the number of pictures, or there is no turn at all.
    """

    id: str
    images: tuple[Path, ...]
    messages: tuple[Message, ...]
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataFormatError(f"Sample {self.id!r} has no messages.")
        placeholders = count_placeholders(self.messages)
        if placeholders != len(self.images):
            raise DataFormatError(
                f"Sample {self.id!r} has {placeholders} {IMAGE_PLACEHOLDER} placeholder(s) in its texts and {len(self.images)} image(s); "
                "each placeholder stands for one image."
            )

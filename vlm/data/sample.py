"""One conversation with its pictures, as every reader yields it, and the rows that do not become one. Knows no file format, no tokenizer and no pixels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlm.errors import DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, Message, count_placeholders

MAY_FOLLOW = {"user": ("system", ""), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}  # beside user after assistant


@dataclass(frozen=True)
class Sample:
    """One conversation; its `<image>` placeholders, in reading order, stand for `images`.

    Attributes:
        id: Name of the sample in its dataset, for messages.
        images: Picture files.
        messages: The turns.
        extra: What evaluations want to know besides, such as the type of a question.
        sizes: Height and width of each picture in pixels, upright, where preparation has measured them; else empty.

    Raises:
        DataFormatError: If the number of placeholders is not the number of pictures, or there is no turn at all.
    """

    id: str
    images: tuple[Path, ...]
    messages: tuple[Message, ...]
    extra: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataFormatError(f"Sample {self.id!r} has no messages.")
        placeholders = count_placeholders(self.messages)
        if placeholders != len(self.images):
            raise DataFormatError(
                f"Sample {self.id!r} has {placeholders} {IMAGE_PLACEHOLDER} placeholder(s) in its texts and {len(self.images)} image(s); "
                "each placeholder stands for one image."
            )


@dataclass(frozen=True)
class Dropped:
    """A row of a source that does not become a sample.

    Attributes:
        id: Name of the row in its source.
        reason: Why, in few words that are the same for every row dropped for that reason.
        detail: What exactly is wrong with this row, as a sentence; empty if the reason says it all.
        where: File and row, if the row is faulty; empty if the dataset leaves it out on purpose.
    """

    id: str
    reason: str
    detail: str = ""
    where: str = ""


Row = Sample | Dropped


def refuse_faulty(rows: Iterable[Row], *, skip: str = "--on-bad-row skip") -> Iterator[Row]:
    """Pass rows through up to the first faulty one.

    Args:
        rows: The rows.
        skip: The option that leaves faulty rows out, for the message.

    Raises:
        DataFormatError: At a faulty row; file, row and the way to skip such rows are named.
    """
    for row in rows:
        if isinstance(row, Dropped) and row.where:
            raise DataFormatError(f"{row.where}: {row.detail or row.reason} Mend the row, or leave such rows out with {skip}.")
        yield row


def check_turns(messages: Sequence[Message]) -> None:
    """Make sure that a conversation can be trained on: user and assistant take turns, the assistant has the last word, and no answer is empty.

    A system message may come first; results of tools come between two answers; a document stands alone.

    Raises:
        DataFormatError: If that is not so. The text before the first colon is the same for every row of that fault.
    """
    before = ""
    for i, message in enumerate(messages, start=1):
        if message.role == "document" and len(messages) == 1:
            return
        allowed = (*MAY_FOLLOW.get(message.role, ()), *(("assistant",) if message.role == "user" else ()))
        if message.role == "document" or (message.role == "system" and i > 1) or (message.role != "system" and before not in allowed):
            raise DataFormatError(f"roles do not alternate: turn {i} is by the {message.role}, after {f'the {before}' if before else 'nothing'}.")
        if message.role == "assistant" and not message.text.strip():
            raise DataFormatError(f"an answer is empty: turn {i}.")
        before = message.role
    if before != "assistant":
        raise DataFormatError(f"the answer is missing: the conversation has {len(messages)} turn(s), and the last is by {before or 'nobody'}.")

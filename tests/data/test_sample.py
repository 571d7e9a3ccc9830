from pathlib import Path

import pytest

from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message


def test_placeholders_and_images_must_be_equally_many():
    with pytest.raises(DataFormatError, match=r"'a' has 1 <image> placeholder\(s\) .* and 2 image\(s\)"):
        Sample("a", (Path("x.png"), Path("y.png")), (Message("user", "<image>\nwhat?"), Message("assistant", "that")))


def test_placeholders_may_stand_in_any_turn():
    messages = (Message("user", "<image> or"), Message("assistant", "or <image>?"))
    assert Sample("a", (Path("x.png"), Path("y.png")), messages).images == (Path("x.png"), Path("y.png"))


def test_a_sample_has_messages():
    with pytest.raises(DataFormatError, match="no messages"):
        Sample("a", (), ())

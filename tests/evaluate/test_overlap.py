import re

import numpy as np
import pytest
from PIL import Image

from vlm.data.benchmarks.base import Picture
from vlm.data.sample import Sample
from vlm.errors import ConfigError
from vlm.evaluate.overlap import Known, known, pictures_of, refuse_overlap
from vlm.messages import Message


def test_overlap_by_id_or_content_is_refused_with_how_many_and_the_first():
    train = Known(("1", "2", "3"), ("a", "b", ""))
    evaluated = Known(("9", "2", "8", "7"), ("x", "b", "a", ""))
    with pytest.raises(ConfigError, match=re.escape("50 % of these images were trained on: 2 of 4 (1 by id, 2 by content), first 2, 8. ")):
        refuse_overlap(train, evaluated, allow=False)
    overlap = refuse_overlap(train, evaluated, allow=True)
    assert overlap.ids == ("2", "8") and str(overlap).startswith("50 % of these images were trained on")


def test_no_overlap_is_said_as_such_and_a_missing_hash_is_not_equal_to_another():
    overlap = refuse_overlap(Known(("1",), ("",)), Known(("2", "3"), ("", "")), allow=False)
    assert not overlap.ids and str(overlap) == "None of 2 pictures was trained on, by id and by content."


def test_few_of_many_are_not_called_none():
    evaluated = Known(tuple(map(str, range(1000))), ("",) * 1000)
    assert str(refuse_overlap(Known(("7",), ("",)), evaluated, allow=True)).startswith("0.1 % of these images")


def test_files_are_equal_by_their_bytes_and_pictures_by_their_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    pictures = [Picture(name, tmp_path / name) for name in ("a.png", "b.bmp", "c.png", "gone.png")] + [Picture("array", pixels)]
    a, b, c, gone, _ = known(pictures).hashes
    assert a == c != b and gone == ""
    a, b, c, gone, array = known(pictures, pixels=True).hashes
    assert a == b == c == array and gone == ""


def test_files_of_other_sizes_are_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    assert [bool(digest) for digest in known([Picture("a", tmp_path / "a"), Picture("b", tmp_path / "b")], sizes={3}).hashes] == [False, True]


def test_training_pictures_are_named_by_image_id_or_path(tmp_path):
    message = (Message("user", "<image>x"), Message("assistant", "y"))
    samples = [Sample("1/7", (tmp_path / "a",), message, {"image_id": "1"}), Sample("1/8", (tmp_path / "a",), message, {"image_id": "1"})]
    assert [picture.id for picture in pictures_of([*samples, Sample("z", (tmp_path / "b",), message)])] == ["1", str(tmp_path / "b")]

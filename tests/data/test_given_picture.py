"""Whatever form a caller gives a picture in, it is the same one."""

import io

import numpy as np
import pytest
from PIL import Image

from vlm.data.given_picture import as_picture, as_pictures
from vlm.errors import DataFormatError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a b.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.mark.parametrize("form", [lambda p: p, str, lambda p: p.as_uri(), lambda p: p.read_bytes(), Image.open, lambda _: PIXELS])
def test_a_picture_is_the_same_in_every_form(file, form):
    assert (np.asarray(as_picture(form(file))) == PIXELS).all()


def test_one_picture_is_a_list_of_one(file):
    for one in (file, str(file), file.read_bytes(), PIXELS, Image.fromarray(PIXELS)):
        assert [picture.size for picture in as_pictures(one)] == [picture.size for picture in as_pictures(iter([one]))] == [(5, 3)]
    assert as_pictures([]) == []
    assert len(as_pictures((file, PIXELS))) == 2


def test_a_photograph_is_turned_and_the_callers_own_stays_as_it_is():
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(content, "PNG", exif=exif)
    opened = Image.open(content)
    assert (np.asarray(as_picture(opened)) == np.rot90(PIXELS, -1)).all()
    assert opened.size == (5, 3)
    assert opened.getexif()[0x0112] == 6


def test_gray_and_transparent_arrays_are_taken():
    assert np.asarray(as_picture(PIXELS[:, :, 0]))[1, 2].tolist() == [PIXELS[1, 2, 0]] * 3
    assert np.asarray(as_picture(np.zeros((2, 2, 4), np.uint8))).tolist() == np.full((2, 2, 3), 255).tolist()


def cut_short() -> Image.Image:
    content = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(content, "JPEG")
    return Image.open(io.BytesIO(content.getvalue()[:3000]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "A NoneType is no picture. Give a picture of PIL, a path, a URL"),
        ([3], "A int is no picture"),
        (PIXELS / 255, r"An array of float64 of shape \(3, 5, 3\) is no picture"),
        (np.stack([PIXELS, PIXELS]), r"An array of uint8 of shape \(2, 3, 5, 3\)"),
        (PIXELS[:0], r"shape \(0, 5, 3\)"),
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 3, 5\)"),
        (b"no picture", "A picture of 10 bytes cannot be read"),
        (b"", "A picture of 0 bytes cannot be read"),
        ("nope.png", "There is no image file nope.png"),
        ("http://127.0.0.1/a.png", "which is no public address"),
        (Image.new("F", (2, 2)), "floating-point values"),
        (cut_short(), "cannot be read: .* Give another one"),
    ],
)
def test_what_is_no_picture_is_one_line(given, said):
    with pytest.raises(ValueError, match=said) as caught:
        as_pictures(given)
    assert "\n" not in str(caught.value)
    assert type(caught.value).__module__.startswith("vlm.")


def test_errors_are_of_data(file):
    file.write_bytes(b"")
    with pytest.raises(DataFormatError, match="it is no picture, or its beginning is damaged"):
        as_picture(file)

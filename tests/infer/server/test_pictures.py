"""Pictures of requests against the pictures that were sent."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vlm.infer.server.limits import Limits
from vlm.infer.server.pictures import decode_pictures, fetch_from, read_addresses
from vlm.infer.server.problem import RequestError

LIMITS = Limits()


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 6, width: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "gif", "jpeg"])
def test_a_picture_is_the_one_that_was_sent(kind):
    options = {"lossless": True} if kind == "webp" else {}
    content = file_of(noise(), kind, **options)
    (file,) = read_addresses([f"data:image/{kind};base64,{base64.b64encode(content).decode()}"], LIMITS, fetch_from(()))
    (image,) = decode_pictures([file], LIMITS)
    assert image.mode == "RGB"
    assert image.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_a_turned_photograph_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    (image,) = decode_pictures([file_of(noise(6, 9), "jpeg", exif=exif)], LIMITS)
    assert image.size == (6, 9)


def test_no_picture_is_decoded_if_all_have_too_many_pixels(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    files = [file_of(Image.new("RGB", (40, 30)), "png")] * 2
    with pytest.raises(RequestError, match=r"The pictures \(40x30, 40x30\) have 2,400 pixels; this server takes 2,000"):
        decode_pictures(files, Limits(max_pixels=2_000))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a picture", "it is none of JPEG"),
        (file_of(noise(90, 90), "png")[:900], "it is broken"),
        (file_of(Image.new("RGB", (8, 8)), "tiff"), "it is none of JPEG"),
        (b"", "it is none of JPEG"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_by_its_number(content, said):
    good = file_of(noise(), "png")
    with pytest.raises(RequestError, match="Picture 2 cannot be read: " + said) as caught:
        decode_pictures([good, content], LIMITS)
    assert caught.value.code == "invalid_image"


def test_a_picture_that_claims_billions_of_pixels_is_refused():
    header = bytearray(file_of(Image.new("L", (8, 8)), "bmp"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(RequestError, match="its size is beyond all limits"):
        decode_pictures([bytes(header)], LIMITS)


@pytest.mark.parametrize("address", ["data:image/png,abc", "data:image/png;base64,%%%", "data:", "data:image/png;base64,abc"])
def test_a_data_url_that_holds_no_base64_is_refused(address):
    with pytest.raises(RequestError, match="The data URL"):
        read_addresses([address], LIMITS, fetch_from(()))


def test_more_pictures_than_allowed_are_not_even_read():
    with pytest.raises(RequestError, match="The conversation has 3 pictures; this server takes 2"):
        read_addresses(["data:"] * 3, Limits(max_pictures=2), fetch_from(()))


def test_fetched_pictures_have_no_more_bytes_together_than_a_request():
    asked = []

    def fetch(address: str) -> bytes:
        asked.append(address)
        return b"x" * 600

    with pytest.raises(RequestError, match="The first 2 pictures have more than 1,000 bytes") as caught:
        read_addresses(["http://a/1", "http://a/2", "http://a/3"], Limits(max_body_bytes=1_000), fetch)
    assert caught.value.status == 413
    assert asked == ["http://a/1", "http://a/2"]

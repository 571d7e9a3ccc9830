"""Pictures from files, URLs and rows, or the status that says why not; files kept from the network."""

from pathlib import Path

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server
from PIL import Image
from tiny_scores import picture

from vlm.data.fetched import Fetched
from vlm.data.image import load_image, to_tiles
from vlm.data.remote import FetchRules
from vlm.score.pictures import Fault, PictureReader, Tile
from vlm.types import ImagePolicy

POLICY = ImagePolicy(size=16, mode="crop")
HERE = FetchRules(allow_private=True, seconds=10.0)


def test_a_tile_is_the_one_that_the_model_makes_of_the_picture(tmp_path):
    path = picture(tmp_path / "a.png", 0, (50, 30))
    found = PictureReader(POLICY).read("a.png", tmp_path)
    assert isinstance(found, Tile)
    assert found.pixels.equal(to_tiles(load_image(path), POLICY)[0][0])
    assert (found.width, found.height) == (50, 30)
    assert PictureReader(POLICY, root=tmp_path).read("a.png", Path("elsewhere")).pixels.equal(found.pixels)


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 30)).save(tmp_path / "turned.jpg", exif=exif)
    found = PictureReader(POLICY).read("turned.jpg", tmp_path)
    assert (found.width, found.height) == (30, 50)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "L", "1"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    Image.new(mode, (20, 20)).save(tmp_path / "a.tif")
    assert isinstance(PictureReader(POLICY).read("a.tif", tmp_path), Tile)


@pytest.mark.parametrize(
    "name, settings, status, message",
    [
        ("missing.png", {}, "fetch_error", "There is no image file"),
        (".", {}, "fetch_error", "cannot be read: Is a directory"),
        ("a\0.png", {}, "fetch_error", "cannot be read"),
        ("/dev/null", {}, "fetch_error", "it is a device or a pipe"),
        ("http://a.org/x.png", {}, "fetch_error", "nothing is fetched"),
        ("a.png", {"images": "url"}, "fetch_error", "is no URL"),
        ("broken.png", {}, "decode_error", "cannot be read as a picture"),
        ("cut.png", {}, "decode_error", "cannot be read as a picture"),
        ("narrow.png", {}, "decode_error", "too narrow"),
        ("a.png", {"max_pixels": 100}, "too_large", "40x30 pixels"),
        ("a.png", {"max_bytes": 100}, "too_large", "bytes, and 100 are allowed"),
    ],
)
def test_what_cannot_be_used_has_a_status_and_a_reason(tmp_path, name, settings, status, message):
    content = picture(tmp_path / "a.png", 0).read_bytes()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (2000, 1)).save(tmp_path / "narrow.png")
    found = PictureReader(POLICY, **settings).read(name, tmp_path)
    assert isinstance(found, Fault)
    assert found.status == status
    assert message in found.error


def test_limits_hold_for_pictures_in_rows(tmp_path):
    content = picture(tmp_path / "a.png", 0).read_bytes()
    assert isinstance(PictureReader(POLICY).read("sha256:1", tmp_path, content), Tile)
    assert PictureReader(POLICY, max_bytes=100).read("sha256:1", tmp_path, content).status == "too_large"


def test_a_file_stands_for_a_url(tmp_path):
    picture(tmp_path / "12.png", 0)
    reader = PictureReader(POLICY, root=tmp_path, url_file="{4}.png")
    assert isinstance(reader.read("https://a.org/photos/12/big.jpg", Path()), Tile)
    assert "has no part for --url-file" in reader.read("https://a.org/x", Path()).error


def test_a_url_is_fetched_once_and_kept(tmp_path, archive_server: ArchiveServer):
    url = archive_server.serve("a.png", picture(tmp_path / "a.png", 0).read_bytes())
    reader = PictureReader(POLICY, "url", Fetched(HERE, tmp_path / "kept"))
    first, second = reader.read(url, tmp_path), reader.read(url, tmp_path)
    assert isinstance(first, Tile)
    assert first.pixels.equal(second.pixels)
    assert len(archive_server.requests) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_server_that_does_not_give_a_picture_is_a_status(tmp_path, archive_server: ArchiveServer):
    reader = PictureReader(POLICY, "auto", Fetched(HERE, retries=0))
    assert reader.read(archive_server.serve("page.png", b"<html>"), tmp_path).status == "decode_error"
    assert reader.read(f"{archive_server.serve('b.png', b'')}-missing", tmp_path).status == "fetch_error"
    small = PictureReader(POLICY, "auto", Fetched(FetchRules(allow_private=True, max_bytes=10)))
    assert small.read(archive_server.serve("long.png", b"0" * 100), tmp_path).status == "too_large"
    assert "no public address" in PictureReader(POLICY, "auto").read(archive_server.serve("c.png", b""), tmp_path).error

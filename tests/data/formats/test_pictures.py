import base64
import hashlib
from pathlib import Path

import pytest

from vlm.data.formats.pictures import holds_pictures, store_picture, unpack_pictures
from vlm.errors import DataFormatError


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"\x89PNG\r\n", ".png"),
        (b"GIF89a", ".gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", ".webp"),
        (b"BM", ".bmp"),
        (b"II*\x00", ".tif"),
        (b"?", ".img"),
    ],
)
def test_a_name_is_the_hash_and_the_kind_of_the_bytes(tmp_path: Path, start: bytes, suffix: str):
    name = store_picture(start + b"rest", tmp_path)
    digest = hashlib.sha256(start + b"rest").hexdigest()
    assert name == Path(digest[:2]) / f"{digest[:32]}{suffix}"
    assert (tmp_path / name).read_bytes() == start + b"rest"


def test_a_picture_that_is_there_is_not_written_again(tmp_path: Path):
    file = tmp_path / store_picture(b"GIF8", tmp_path)
    file.write_bytes(b"kept")
    assert tmp_path / store_picture(b"GIF8", tmp_path) == file
    assert file.read_bytes() == b"kept"


def test_no_bytes_are_an_error(tmp_path: Path):
    with pytest.raises(DataFormatError, match="a picture is empty"):
        store_picture(b"", tmp_path)


def test_names_take_the_places_of_pictures(tmp_path: Path):
    name = store_picture(b"GIF8", tmp_path).as_posix()
    url = "data:image/gif;base64," + base64.b64encode(b"GIF8").decode()
    row = {
        "image": {"bytes": b"GIF8", "path": "x"},
        "images": [b"GIF8", {"bytes": None, "path": "a.gif"}],
        "deep": [{"url": url}],
        "text": "data",
        "n": 3,
    }
    assert unpack_pictures(row, tmp_path) == {
        "image": name,
        "images": [name, {"bytes": None, "path": "a.gif"}],
        "deep": [{"url": str(tmp_path / name)}],
        "text": "data",
        "n": 3,
    }


def test_bytes_are_found_at_any_depth():
    assert holds_pictures({"images": [{"bytes": b"x"}]})
    assert not holds_pictures({"images": [{"bytes": None, "path": "a.jpg"}], "text": "x"})

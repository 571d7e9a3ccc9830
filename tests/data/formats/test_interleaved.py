import json
from pathlib import Path

import pytest

from vlm.data.formats import FORMATS
from vlm.data.formats.interleaved import read_interleaved
from vlm.data.sample import Dropped, Row, Sample
from vlm.messages import Message


def read(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return list(FORMATS["obelics"].read(path))


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_texts_and_pictures_keep_their_order(tmp_path: Path):
    put(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (sample,) = read(tmp_path, {"images": [None, "a.jpg", "b.jpg", None], "texts": [" Dogs bark.\n", None, None, "Cats do not."]})
    assert sample == Sample("1", (Path("a.jpg"), Path("b.jpg")), (Message("document", "Dogs bark.\n\n<image>\n\n<image>\n\nCats do not."),))


def test_a_missing_picture_drops_its_place(tmp_path: Path):
    put(tmp_path / "a.jpg")
    (sample,) = read(tmp_path, {"images": ["gone.jpg", None, "a.jpg", None], "texts": [None, "Dogs", None, None]})
    assert sample == Sample("1", (Path("a.jpg"),), (Message("document", "Dogs\n\n<image>"),))


def test_a_document_may_have_no_picture(tmp_path: Path):
    (sample,) = read(tmp_path, {"images": [None, None], "texts": ["Dogs", "bark."]})
    assert sample == Sample("1", (), (Message("document", "Dogs\n\nbark."),))


def test_a_url_is_found_among_the_pictures_beside_the_file(tmp_path: Path):
    put(tmp_path / "images" / "a dog.jpg")
    row = {"images": ["https://a.b/c/a%20dog.jpg?size=9", None, "https://a.b/gone.jpg"], "texts": [None, "Dogs", None]}
    (sample,) = read(tmp_path, row)
    assert sample == Sample("1", (Path("images/a dog.jpg"),), (Message("document", "<image>\n\nDogs"),))


def test_pictures_may_be_found_by_a_map(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"images": ["https://a.b/1", None], "texts": [None, "Dogs"]}]), encoding="utf-8")
    (sample,) = read_interleaved(path, find={"https://a.b/1": Path("store/9.jpg")}.get)
    assert isinstance(sample, Sample) and sample.images == (Path("store/9.jpg"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": [None], "texts": "x"}, "the list 'texts' is missing"),
        ({"texts": ["x"]}, "the list 'images' is missing"),
        ({"images": [None], "texts": ["x", "y"]}, "texts and images are not equally many"),
        ({"images": ["a.jpg"], "texts": ["x"]}, "a place has both a text and an image"),
        ({"images": ["https://a.b/c.jpg", None], "texts": [None, "x"]}, "all images are URLs"),
        ({"images": ["gone.jpg"], "texts": [None]}, "the document is empty"),
        ({"images": [], "texts": []}, "the document is empty"),
        ({"images": [3, None], "texts": [None, "x"]}, "an image is not a path"),
        ({"images": [None], "texts": [3]}, "a text is not a text"),
        ({"images": [None], "texts": ["an <image> in words"]}, "placeholders and images differ"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.jsonl'}, row 1")

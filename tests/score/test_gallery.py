"""What counts as a folder of pictures alone."""

import pytest
from PIL import Image

from vlm.errors import DataFormatError
from vlm.score.gallery import open_gallery


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "more/c.png", ".thumbnails/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("stray", ["notes.txt", "more/README.md", ".DS_Store"])
def test_a_folder_of_pictures_may_hold_other_files(folder, stray):
    (folder / stray).write_text("taken in June", encoding="utf-8")
    found = open_gallery(str(folder), data_root=folder)
    assert [picture.id for picture in found.pictures] == ["a.jpg", "b.png", "more/c.png"]
    assert found.captions == []


def test_texts_beside_pictures_are_their_captions(folder):
    for name in ("a", "b", "more/c"):
        (folder / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
    assert sorted(open_gallery(str(folder), data_root=folder).captions) == ["picture a", "picture b", "picture more/c"]


def test_a_table_beside_pictures_is_never_passed_over(folder):
    (folder / "captions.csv").write_text("image,caption\na.jpg,red\n", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"captions.csv"):
        open_gallery(str(folder), data_root=folder)

from pathlib import Path

import pytest
from tiny_archives import picture

from vlm.data.datasets.base import Archive
from vlm.data.datasets.pictures import PicturePlace, Pictures
from vlm.data.sample import Dropped, Sample
from vlm.messages import Message

SHOP = Archive(file="shop.zip", url="")
BOOKS = Archive(file="books.zip", url="")
MORE = Archive(file="more.zip", url="")


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(name))
    return root


def in_shop(root: Path, inside: str = "images") -> Pictures:
    return Pictures([PicturePlace("shop/images", SHOP, inside)], {"shop.zip": root})


@pytest.mark.parametrize("top", ["images", "release/v2/images", "pictures", "."])
def test_a_picture_is_found_whatever_top_folder_the_archive_has(tmp_path: Path, top: str):
    write(tmp_path, f"{top}/1.jpg", "elsewhere/2.jpg")
    assert in_shop(tmp_path).locate(Path("shop/images/1.jpg")) == tmp_path / top / "1.jpg"


def test_folders_below_the_prefix_are_part_of_the_name(tmp_path: Path):
    write(tmp_path, "x/00000/1.jpg", "x/00001/1.jpg")
    pictures = in_shop(tmp_path)
    assert pictures.locate(Path("shop/images/00001/1.jpg")) == tmp_path / "x/00001/1.jpg"
    assert pictures.locate(Path("shop/images/00002/1.jpg")) is None


def test_of_two_pictures_of_one_name_neither_is_taken(tmp_path: Path):
    write(tmp_path, "train/1.jpg", "val/1.jpg", "one/2.jpg", "two/2.png")
    assert in_shop(tmp_path).locate(Path("shop/images/1.jpg")) is None
    assert in_shop(tmp_path).locate(Path("shop/images/2.jpg")) == tmp_path / "one/2.jpg"


def test_the_same_stem_with_another_suffix_of_pictures_answers_and_the_row_names_that_file(tmp_path: Path):
    write(tmp_path, "images/1.gif", "images/2.png", "images/3.jpg")
    (tmp_path / "images/4.txt").write_text("no picture", encoding="utf-8")
    pictures = in_shop(tmp_path)
    names = tuple(Path(f"shop/images/{number}.jpg") for number in (1, 2, 3, 4))
    row = pictures.with_real_suffixes(Sample("a", names, (Message("user", "<image>" * 4), Message("assistant", "b"))))
    assert isinstance(row, Sample)
    assert [name.name for name in row.images] == ["1.gif", "2.png", "3.jpg", "4.jpg"]
    assert [file and file.name for file in map(pictures.locate, row.images)] == ["1.gif", "2.png", "3.jpg", None]


def test_rows_without_pictures_and_dropped_rows_pass_unchanged(tmp_path: Path):
    text, dropped = Sample("a", (), (Message("user", "a"), Message("assistant", "b"))), Dropped("b", "broken")
    assert in_shop(tmp_path).with_real_suffixes(text) is text
    assert in_shop(tmp_path).with_real_suffixes(dropped) is dropped


def test_the_prefix_chooses_the_archive_and_several_archives_may_share_one(tmp_path: Path):
    places = {name: write(tmp_path / name, f"images/{name}.jpg", "images/same.jpg") for name in ("shop.zip", "books.zip", "more.zip")}
    pictures = Pictures([PicturePlace("a", SHOP, "images"), PicturePlace("a_2", BOOKS, "images"), PicturePlace("a_2", MORE, "images")], places)
    assert pictures.locate(Path("a/same.jpg")) == tmp_path / "shop.zip/images/same.jpg"
    assert pictures.locate(Path("a_2/same.jpg")) == tmp_path / "books.zip/images/same.jpg"
    assert pictures.locate(Path("a_2/more.zip.jpg")) == tmp_path / "more.zip/images/more.zip.jpg"
    assert pictures.locate(Path("a/books.zip.jpg")) is None
    assert pictures.locate(Path("b/same.jpg")) is None


@pytest.mark.parametrize("name", ["../secret.jpg", "shop/images/../../../secret.jpg", "{root}/secret.jpg"])
def test_a_name_cannot_lead_out_of_the_archives(tmp_path: Path, name: str):
    write(tmp_path, "secret.jpg", "shop/images/1.jpg")
    pictures = Pictures([PicturePlace("", SHOP)], {"shop.zip": tmp_path / "shop"})
    assert pictures.locate(Path("images/1.jpg")) == tmp_path / "shop/images/1.jpg"
    assert pictures.locate(Path(name.format(root=tmp_path))) is None


def test_the_folder_is_listed_at_the_first_missing_picture_and_not_again(tmp_path: Path):
    write(tmp_path, "images/1.jpg")
    pictures = in_shop(tmp_path)
    assert pictures.locate(Path("shop/images/1.jpg"))
    write(tmp_path, "late/2.jpg")
    assert pictures.locate(Path("shop/images/2.jpg")) == tmp_path / "late/2.jpg"
    write(tmp_path, "later/3.jpg")
    assert pictures.locate(Path("shop/images/3.jpg")) is None


def test_a_name_that_no_file_can_have_is_a_missing_picture(tmp_path: Path):
    write(tmp_path, "images/1.jpg")
    assert in_shop(tmp_path).locate(Path("shop/images") / f"{'x' * 300}.jpg") is None
    assert in_shop(tmp_path).locate(Path("shop/images")) is None

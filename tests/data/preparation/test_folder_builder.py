from pathlib import Path

import pytest
from PIL import Image

from vlm.data.preparation.folder_builder import FolderBuilder, is_safe
from vlm.data.preparation.verify_pictures import PictureChecker
from vlm.data.rows import read_parquet
from vlm.data.sample import Dropped, Sample
from vlm.messages import Message


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def sample(name: str, *images: str, text: str = "what?") -> Sample:
    return Sample(name, tuple(map(Path, images)), (Message("user", "<image>" * len(images) + text), Message("assistant", "this")))


def build(folder: Path, source: Path, rows: list, **settings):
    folder.mkdir()
    with PictureChecker(workers=1, **{name: value for name, value in settings.items() if name == "verify"}) as checker:
        linkable = settings.get("linkable", ())
        builder = FolderBuilder(
            folder, locate=lambda name: source / name.name if name.name != "unknown.png" else None, checker=checker, linkable=linkable
        )
        return builder.write_split("train", rows, where="shapes", on_bad_row="skip")


def test_rows_with_unusable_pictures_are_dropped_and_the_others_keep_their_order(tmp_path: Path, source: Path):
    rows = [
        sample("1", "good.png"),
        sample("2", "bad.png"),
        sample("3"),
        sample("4", "good.png", "no.png"),
        sample("5", "unknown.png"),
        sample("6", "good.png"),
    ]
    file, dropped = build(tmp_path / "out", source, rows)
    assert [row["id"] for row in read_parquet(tmp_path / "out" / file.file)] == ["1", "3", "6"]
    assert {reason: [row["id"] for row in rows] for reason, rows in dropped.items()} == {
        "image file unreadable": ["2"],
        "image file missing": ["4", "5"],
    }
    assert dropped["image file unreadable"][0]["detail"].startswith("The image file bad.png cannot be read: it is no picture")
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["good.png"]


@pytest.mark.parametrize(
    "name", ["../good.png", "/good.png", "a/../../good.png", "C:/good.png", "C:good.png", "..\\good.png", "\\\\host\\share\\good.png", "."]
)
def test_picture_name_that_leads_out_of_the_folder_is_dropped(tmp_path: Path, source: Path, name: str):
    assert not is_safe(Path(name))
    file, dropped = build(tmp_path / "out", source, [sample("1", "good.png"), sample("2", name)])
    assert file.rows == 1 and list(dropped) == ["image name leads out of the folder"]


@pytest.mark.parametrize("name", ["a.png", "a/b/c..d.png", "日本/ü.png", ".hidden.png", "a b.png", "back\\slash.png"])
def test_names_below_the_folder_are_safe(name: str):
    assert is_safe(Path(name))


def test_files_of_linkable_folders_are_linked_and_others_copied(tmp_path: Path, source: Path):
    build(tmp_path / "linked", source, [sample("1", "a/good.png")], linkable=(source,))
    build(tmp_path / "copied", source, [sample("1", "a/good.png")])
    assert (tmp_path / "linked/images/a/good.png").samefile(source / "good.png")
    assert not (tmp_path / "copied/images/a/good.png").samefile(source / "good.png")


def test_pictures_that_are_not_opened_have_no_size(tmp_path: Path, source: Path):
    file, dropped = build(tmp_path / "out", source, [sample("1", "good.png"), sample("2", "bad.png"), sample("3", "no.png")], verify="off")
    assert [(row["id"], row["sizes"]) for row in read_parquet(tmp_path / "out" / file.file)] == [("1", []), ("2", [])]
    assert list(dropped) == ["image file missing"]


def test_ids_that_are_there_twice_are_kept_and_counted(tmp_path: Path, source: Path):
    file, _ = build(tmp_path / "out", source, [sample("1", "good.png"), sample("1"), sample("2")])
    assert (file.rows, file.images, file.duplicate_ids) == (3, 1, 1)


def test_half_of_a_surrogate_pair_cannot_be_stored(tmp_path: Path, source: Path):
    rows = [sample("1"), sample("2", text="\ud83d"), sample("\ud83d"), Dropped("\ud83d", "no answer")]
    file, dropped = build(tmp_path / "out", source, rows)
    assert file.rows == 1
    assert [row["id"] for row in dropped["text is no Unicode"]] == ["2", "\\ud83d"]
    assert dropped["no answer"][0]["id"] == "\\ud83d"

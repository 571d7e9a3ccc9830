import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm.data.own_files import OwnFiles, own_rows, recognizes_own
from vlm.data.sample import Dropped, Sample
from vlm.errors import DataFormatError
from vlm.messages import Message

REQUEST = Message("user", "<image>\nDescribe the image.")


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(file, "PNG")
    return file.getvalue()


def captioned(id: str, image: str, caption: str) -> Sample:
    return Sample(id, (Path(image),), (REQUEST, Message("assistant", caption)))


def opened(path: Path) -> tuple[OwnFiles, list[object]]:
    files = own_rows(path, pictures=path.parent / "pictures")
    return files, list(files.rows)


def test_a_table_of_captions(tmp_path: Path):
    path = tmp_path / "my.csv"
    path.write_text('Filename;Title;note\r\nb/a.jpg;"A dog; brown";x\r\n/c/d.jpg;A cat;\r\n', encoding="utf-8-sig")
    files, rows = opened(path)
    assert files.image_root == tmp_path
    assert rows == [captioned("1", "b/a.jpg", "A dog; brown"), captioned("2", "/c/d.jpg", "A cat")]


def test_a_table_of_questions(tmp_path: Path):
    path = tmp_path / "my.tsv"
    path.write_text("id\timage\tquestion\tanswer\nq1\ta.jpg\tWhat?\tA dog\n", encoding="utf-8")
    assert opened(path)[1] == [Sample("q1", (Path("a.jpg"),), (Message("user", "<image>\nWhat?"), Message("assistant", "A dog")))]


def test_faulty_rows_of_a_table_are_dropped(tmp_path: Path):
    path = tmp_path / "my.csv"
    path.write_text("image,caption\nhttps://a.b/c.jpg,x\n,x\na.jpg,\na.jpg,x,y\na.jpg,A dog\n", encoding="utf-8")
    *dropped, good = opened(path)[1]
    assert [(row.reason, row.where) for row in dropped if isinstance(row, Dropped)] == [
        ("an image is a URL", f"{path}, row 1"),
        ("the image is missing", f"{path}, row 2"),
        ("an answer is empty", f"{path}, row 3"),
        ("the number of cells differs", f"{path}, row 4"),
    ]
    assert good == captioned("5", "a.jpg", "A dog")


def test_a_table_without_the_columns_is_refused_with_its_headers(tmp_path: Path):
    path = tmp_path / "my.csv"
    path.write_text("picture,words\na.jpg,x\n", encoding="utf-8")
    with pytest.raises(
        DataFormatError, match=r"its first line is to name the columns and has \['picture', 'words'\]; expected a column image, .* and caption"
    ):
        own_rows(path, pictures=tmp_path)


def test_the_format_is_that_of_the_first_row_that_has_one(tmp_path: Path):
    path = tmp_path / "my.jsonl"
    path.write_text('not JSON\n[]\n{"image": "a.jpg"}\n{"image": "a.jpg", "caption": "A dog"}\n{"image": "b.jpg"', encoding="utf-8")
    _, rows = opened(path)
    assert [(row.reason, row.where) if isinstance(row, Dropped) else row for row in rows] == [
        ("not JSON", f"{path}, row 1"),
        ("the row is not an object", f"{path}, row 2"),
        ("a column is missing", f"{path}, row 3"),
        captioned("4", "a.jpg", "A dog"),
        ("not JSON", f"{path}, row 5"),
    ]
    assert isinstance(rows[0], Dropped)
    assert rows[0].detail == "not JSON: Expecting value, at line 1, character 1 of the file."


def test_a_file_without_one_whole_row_is_refused_with_the_fault_of_its_first(tmp_path: Path):
    path = tmp_path / "my.jsonl"
    path.write_text("x\n" * 200, encoding="utf-8")
    with pytest.raises(
        DataFormatError, match=r"my\.jsonl, row 1: not JSON: Expecting value, at line 1, .* None of the first 100 row\(s\) can be read\.$"
    ):
        own_rows(path, pictures=tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open/a.png").write_bytes(picture("red"))
    (tmp_path / "open/a.txt").write_text("A square", encoding="utf-8")
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refused(folder: str) -> object:
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    rows = own_rows(tmp_path, pictures=tmp_path / "pictures").rows
    monkeypatch.setattr(os, "scandir", refused)  # the tests may run as root, whom no folder refuses
    with pytest.raises(DataFormatError, match=r"shut cannot be read: Permission denied\."):
        list(rows)


def test_a_folder_of_prepared_datasets_is_no_data_of_its_own(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "samples-train.parquet").touch()
        (tmp_path / "data" / name / "samples-test.parquet").touch()
        (tmp_path / "data" / name / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"data holds prepared datasets \(a, b\); name one of them, such as .*data/a\."):
        own_rows(tmp_path / "data", pictures=tmp_path / "pictures")


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path: Path):
    root = tmp_path / "mine"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in (
        "2.jpg",
        "2.txt",
        "1.PNG",
        "1.txt",
        "b/1.webp",
        "b/1.txt",
        "no_text.jpg",
        "no_image.txt",
        "twice.jpg",
        "twice.png",
        "twice.txt",
        "list.pdf",
    ):
        (root / name).write_text(f" {name}\n", encoding="utf-8")
    (root / "empty.jpg").touch()
    (root / "empty.txt").touch()
    (root / "latin.jpg").touch()
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / ".hidden/1.jpg").touch()
    (root / "._1.png").touch()
    files, rows = opened(root)
    assert files.image_root == root
    assert [row for row in rows if isinstance(row, Sample)] == [
        captioned("1", "1.PNG", "1.txt"),
        captioned("2", "2.jpg", "2.txt"),
        captioned("b/1", "b/1.webp", "b/1.txt"),
    ]
    assert {row.id: (row.reason, row.where) for row in rows if isinstance(row, Dropped)} == {
        "no_text": ("an image has no text", f"{root}/no_text.jpg"),
        "no_image": ("a text has no image", f"{root}/no_image.txt"),
        "twice": ("files share a name", f"{root}/twice.jpg"),
        "empty": ("an answer is empty", f"{root}/empty.jpg"),
        "latin": ("a text is not UTF-8", f"{root}/latin.jpg"),
    }


def test_parquet_of_paths_and_captions(tmp_path: Path):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"image_path": ["a.jpg", None], "text": ["A dog.", "A cat."]}), path)
    files, (good, dropped) = opened(path)
    assert files.image_root == tmp_path
    assert good == captioned("1", "a.jpg", "A dog.")
    assert isinstance(dropped, Dropped) and dropped.reason == "the image is missing"


def test_parquet_with_pictures_inside(tmp_path: Path):
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"image": [{"bytes": picture("red"), "path": "x.png"}], "text": ["A red thing."]}), path)
    files, (sample,) = opened(path)
    assert files.image_root == tmp_path / "pictures"
    assert isinstance(sample, Sample)
    assert (files.image_root / sample.images[0]).read_bytes() == picture("red")


@pytest.fixture
def cauldron():
    """Two rows of the Cauldron's form, as `datasets` makes them."""
    datasets = pytest.importorskip("datasets")
    text = {"user": datasets.Value("string"), "assistant": datasets.Value("string"), "source": datasets.Value("string")}
    texts = [[{"user": "What?", "assistant": "A dog.", "source": "x"}]] * 2
    images = [[Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")], []]
    features = datasets.Features({"images": datasets.List(datasets.Image()), "texts": datasets.List(text)})
    return datasets.Dataset.from_dict({"images": images, "texts": texts}, features=features)


@pytest.mark.parametrize("form", ["save_to_disk", "parquet", "folder"])
def test_a_hugging_face_dataset_in_every_form(tmp_path: Path, cauldron, form: str):
    path = tmp_path / "mine"
    if form == "save_to_disk":
        cauldron.save_to_disk(path, num_shards=2)
    else:
        path = path / "train-00000-of-00001.parquet" if form == "folder" else path.with_suffix(".parquet")
        path.parent.mkdir(exist_ok=True)
        cauldron.to_parquet(path)
        path = path.parent if form == "folder" else path
    files, (two, none) = opened(path)
    assert isinstance(two, Sample) and isinstance(none, Sample)
    assert [message.text for message in two.messages] == ["<image><image>\nWhat?", "A dog."]
    assert [Image.open(files.image_root / name).getpixel((0, 0)) for name in two.images] == [(255, 0, 0), (0, 0, 255)]
    assert [message.text for message in none.messages] == ["What?", "A dog."]


def test_of_several_splits_one_must_be_named(tmp_path: Path, cauldron):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": cauldron, "test": cauldron}).save_to_disk(tmp_path / "mine")
    with pytest.raises(DataFormatError, match=r"holds the splits train, test; name the folder of one of them, such as .*mine/train"):
        own_rows(tmp_path / "mine", pictures=tmp_path)
    assert len(opened(tmp_path / "mine" / "train")[1]) == 2


def test_what_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"There is no file or folder .*gone\.json"):
        own_rows(tmp_path / "gone.json", pictures=tmp_path)
    (tmp_path / "my.xlsx").touch()
    with pytest.raises(DataFormatError, match=r"my\.xlsx is of no known kind; expected \.json, "):
        own_rows(tmp_path / "my.xlsx", pictures=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFormatError, match="holds no picture, no Parquet file"):
        own_rows(tmp_path / "empty", pictures=tmp_path)


def test_own_data_is_told_from_prepared_datasets(tmp_path: Path):
    prepared, pictures, empty = tmp_path / "prepared", tmp_path / "pictures", tmp_path / "empty"
    for folder in (prepared, pictures / "deep", empty):
        folder.mkdir(parents=True)
    (prepared / "manifest.json").write_text(json.dumps({}), encoding="utf-8")
    (prepared / "1.jpg").touch()
    (pictures / "deep" / "1.jpg").touch()
    assert recognizes_own(pictures)
    assert recognizes_own(Path("my.JSONL")) and recognizes_own(Path("my.csv")) and recognizes_own(Path("my.parquet"))
    assert not any(map(recognizes_own, (prepared, empty, Path("easy-vqa"))))


def test_a_list_beside_the_pictures_is_what_to_give(tmp_path: Path):
    for i in range(20):
        (tmp_path / f"{i}.jpg").touch()
        (tmp_path / f"{i}.json").touch()  # what a program noted of one picture is no list
    (tmp_path / "readme.txt").touch()
    assert len(opened(tmp_path)[1]) == 21
    (tmp_path / "captions.csv").touch()
    with pytest.raises(DataFormatError, match=rf"^{tmp_path} holds captions\.csv: give that file: {tmp_path}/captions\.csv\.$"):
        opened(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/chat.jsonl").touch()
    with pytest.raises(DataFormatError, match=r"holds captions\.csv, more/chat\.jsonl: give the one that you mean"):
        opened(tmp_path)
    for i in range(20):
        (tmp_path / f"{i}.txt").touch()
    assert len(opened(tmp_path)[1]) == 21  # captions are there: the list is something else


def test_pictures_that_a_parquet_file_only_names_must_be_there(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.png").write_bytes(picture("red"))
    rows = {"image": [str(tmp_path / "a.png")], "text": ["A red thing."]}
    named = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    named.to_parquet(tmp_path / "my.parquet")
    (sample,) = opened(tmp_path / "my.parquet")[1]
    assert isinstance(sample, Sample) and sample.images[0] == tmp_path / "a.png"
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    with pytest.raises(
        DataFormatError, match=r"the Parquet holds only paths of pictures, relative to .*, and .*a\.png is not there; save it with `save_to_disk`"
    ):
        opened(tmp_path / "my.parquet")

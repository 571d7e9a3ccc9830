from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.data.formats.sources import first_rows, numbered_rows
from vlm.errors import DataFormatError


def written(tmp_path: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def values(path: Path) -> list[object]:
    return [value for _, _, value in numbered_rows(path)]


DOG = {"image": "a.jpg", "caption": "A dog, brown; old"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.csv", 'image,caption\na.jpg,"A dog, brown; old"\n'),
        ("data.csv", 'image;caption\r\na.jpg;"A dog, brown; old"\r\n'),
        ("data.csv", "image\tcaption\na.jpg\tA dog, brown; old\n"),
        ("data.csv", "image|caption\na.jpg|A dog, brown; old"),
        ("data.csv", b'\xef\xbb\xbf"image";"caption"\r\n"a.jpg";"A dog, brown; old"\r\n\r\n'),
        ("DATA.TSV", "image\tcaption\na.jpg\tA dog, brown; old\n"),
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path, name: str, text: str | bytes):
    assert values(written(tmp_path, text, name)) == [DOG]


def test_quoted_cells_may_hold_lines_and_quotation_marks(tmp_path: Path):
    path = written(tmp_path, 'image,caption\na.jpg,"A ""dog""\nand a cat"\n\nb.jpg,x\n')
    assert list(numbered_rows(path)) == [
        (path, 1, {"image": "a.jpg", "caption": 'A "dog"\nand a cat'}),
        (path, 2, {"image": "b.jpg", "caption": "x"}),
    ]


def test_a_row_of_other_length_stands_for_its_fault(tmp_path: Path):
    good, fault, after = values(written(tmp_path, "image,caption\na.jpg,x\nb.jpg,A dog, brown\nc.jpg,y\n"))
    assert good == {"image": "a.jpg", "caption": "x"} and after == {"image": "c.jpg", "caption": "y"}
    assert isinstance(fault, DataFormatError)
    assert str(fault) == "the number of cells differs: the header has 2, the row 3."


def test_a_stray_quotation_mark_costs_its_line(tmp_path: Path):
    path = written(tmp_path, 'image,caption\na.jpg,"red" car\nb.jpg,say "hi"\n"c.jpg","y"\n')
    fault, *good = values(path)
    assert good == [{"image": "b.jpg", "caption": 'say "hi"'}, {"image": "c.jpg", "caption": "y"}]
    assert str(fault) == "not a row of a table: ',' expected after '\"'. A quotation mark may be missing; inside a quoted text it is doubled."
    assert [number for _, number, _ in numbered_rows(path)] == [1, 2, 3]


def test_a_quotation_mark_that_closes_lines_later_costs_the_file(tmp_path: Path):
    path = written(tmp_path, 'image,caption\na.jpg,"open\nb.jpg,"x"\n')
    with pytest.raises(DataFormatError, match=r"data\.csv, row 1: not a table"):
        values(path)


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_where_every_row_counts_bytes_that_are_no_utf8_cost_their_row(tmp_path: Path, name: str):
    rows = (
        ["image,caption", "a.jpg,caf\xe9", "b.jpg,x"]
        if name == "data.csv"
        else ['{"image": "a.jpg", "caption": "caf\xe9"}', '{"image": "b.jpg", "caption": "x"}']
    )
    path = written(tmp_path, "\n".join(rows).encode("latin-1"), name)
    assert [value for *_, value in numbered_rows(path, every=True)] == [
        {"image": "a.jpg", "caption": "caf\udce9"},
        {"image": "b.jpg", "caption": "x"},
    ]
    assert list(first_rows(path, every=True))[1] == {"image": "b.jpg", "caption": "x"}
    with pytest.raises(DataFormatError, match="is not UTF-8 at or after row 1"):
        values(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image,caption\na.jpg,x\nb.jpg,"A dog\n', r"data\.csv, row 2: not a table: .* A quotation mark may be missing"),
        (b"image,caption\na.jpg,caf\xe9\n", r"data\.csv is not UTF-8 at or after row 1: .* Save it as 'CSV UTF-8'"),
        ("image,image\na.jpg,x\n", r"data\.csv has a header twice"),
        ("image,caption\n", r"data\.csv has no row"),
        ("", r"data\.csv has no row"),
    ],
)
def test_a_broken_table_is_an_error(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataFormatError, match=message):
        path = written(tmp_path, text)
        list(first_rows(path))
        values(path)


def test_rows_of_several_parquet_files_name_their_file(tmp_path: Path):
    for i in (1, 0):
        pq.write_table(pa.table({"x": [10 * i, 10 * i + 1]}), tmp_path / f"train-{i}.parquet")
    zero, one = tmp_path / "train-0.parquet", tmp_path / "train-1.parquet"
    assert list(numbered_rows(tmp_path)) == [(zero, 1, {"x": 0}), (zero, 2, {"x": 1}), (one, 1, {"x": 10}), (one, 2, {"x": 11})]


def test_a_damaged_folder_of_save_to_disk_is_an_error(tmp_path: Path):
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"state\.json is damaged"):
        values(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"data\.arrow cannot be read as Arrow"):
        values(tmp_path)
    (tmp_path / "data.arrow").write_bytes(b"no arrow at all")
    with pytest.raises(DataFormatError, match=r"data\.arrow cannot be read as Arrow"):
        values(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataFormatError, match="There is no file or folder"):
        values(tmp_path / "gone")
    with pytest.raises(DataFormatError, match="holds no Parquet file"):
        values(tmp_path)

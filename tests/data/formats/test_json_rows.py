import json
import tracemalloc
from pathlib import Path

import pytest

from vlm.data.formats import json_rows
from vlm.data.formats.json_rows import beginning_of_rows, load_json, read_json_rows
from vlm.errors import DataFormatError

ROWS = [{"a": 'é\n"\\ 日本 😀' * 5, "b": [1, -2.5e-7, {"c": [None, True, False, []]}]}, [], {}, "x", "", 0, -123456, 1e5, None, True, {"d": "]},["}]


def written(tmp_path: Path, text: str | bytes, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


@pytest.mark.parametrize("piece", [13, 14, 17, 64, 1000])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_rows_are_those_of_json_wherever_a_piece_of_the_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, ascii_only: bool):
    monkeypatch.setattr(json_rows, "PIECE", piece)
    texts = [
        json.dumps(ROWS, ensure_ascii=ascii_only),
        json.dumps(ROWS, ensure_ascii=ascii_only, indent=2),
        "\r\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS) + "\n\n",
    ]
    for text in texts:
        assert list(read_json_rows(written(tmp_path, text))) == list(enumerate(ROWS, start=1))


def test_what_the_file_begins_with_decides_between_array_and_lines(tmp_path: Path):
    assert list(read_json_rows(written(tmp_path, '{"a": 1}\n{"a": 2}', "lines.json"))) == [(1, {"a": 1}), (2, {"a": 2})]
    assert list(read_json_rows(written(tmp_path, ' [{"a": 1}]', "array.jsonl"))) == [(1, {"a": 1})]
    assert list(read_json_rows(written(tmp_path, "[]"))) == []


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    assert list(read_json_rows(written(tmp_path, b'\xef\xbb\xbf[{"a": "\xc3\xa9"}]'))) == [(1, {"a": "é"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.json is empty"),
        (" \n", "data.json is empty"),
        ("[1,\n2,]", "row 2: not JSON: a comma stands before the closing bracket, at line 2, character 7 "),
        ("[1, 2", "row 2: not JSON: the file ends too early, it may be cut short, at line 1, character 6 "),
        ('[1, {"a": "b', "row 2: not JSON: the file ends in the middle of a row, it may be cut short, at line 1"),
        ('[{"a": 1}\n{"a": 2}]', "row 1: not JSON: expected ',', at line 2, character 11 "),
        ('[1, {"a": }, 3]', "row 2: not JSON: Expecting value, at line 1, character 11 "),
        ("[1] 2", "text follows the closing bracket"),
        ('[1, {"a": NaN}]', "row 2: not JSON: NaN is no JSON value, write null, at line 1"),
        ("[-Infinity]", "row 1: not JSON: -Infinity is no JSON value"),
        ('["a\nb"]', "row 1: not JSON: Invalid control character, at line 1, character 4 "),
        ("[" * 100_000, "brackets are nested too deeply"),
        ("[" + "1" * 5000 + "]", "row 1: not JSON: Exceeds the limit"),
        (b'[1, "\xff"]', "data.json is not UTF-8 at or after row 1: invalid start byte. Save the file as UTF-8."),
        (b"\xff\xfe[\x001\x00]\x00", "data.json is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_row_line_and_character(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataFormatError) as error:
        list(read_json_rows(written(tmp_path, text)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_before_a_fault_are_read(tmp_path: Path):
    rows = read_json_rows(written(tmp_path, "[1, 2, x]"))
    assert [next(rows), next(rows)] == [(1, 1), (2, 2)]
    with pytest.raises(DataFormatError, match="row 3"):
        next(rows)


def test_a_row_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_rows, "PIECE", 100)
    path = written(tmp_path, "[[" + "1," * 2000)
    window = json_rows._Window(path, path.open(encoding="utf-8"), longest=1000)
    window.expect("[")
    with pytest.raises(DataFormatError, match="the row is longer than 1,000 characters"):
        window.value()
    window.file.close()


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"none\.json cannot be read: No such file"):
        list(read_json_rows(tmp_path / "none.json"))
    with pytest.raises(DataFormatError, match="cannot be read: Is a directory"):
        list(read_json_rows(tmp_path))


def test_an_array_of_50_mb_needs_less_than_10_mb(tmp_path: Path):
    row = json.dumps({"id": "x", "conversations": [{"from": "human", "value": "word " * 2000}]})
    path = tmp_path / "long.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + row)
        for _ in range(5200):
            file.write("," + row)
        file.write("]")
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    count = sum(1 for _ in read_json_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5201
    assert peak < 10e6


@pytest.mark.parametrize("piece", [13, 20, 1000])
def test_a_broken_line_costs_its_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int):
    monkeypatch.setattr(json_rows, "PIECE", piece)
    broken = (
        "hello, dear reader",
        '{"a": [1, 2}',
        '{"a": "no end',
        '{"a":',
        '{"a": 1,',
        '{"a": NaN}',
        '{"a": {"b": 1}',
        "}",
        '{"a": 2} 3 x',
        '{"a": "cut',
    )
    text = "".join(f'{line}\r\n{{"good": {number}}}\n' for number, line in enumerate(broken[:-1])) + broken[-1]
    rows = list(read_json_rows(written(tmp_path, text)))
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    values = [value for _, value in rows]
    assert [value["good"] for value in values if isinstance(value, dict) and "good" in value] == list(range(9))
    assert [value for value in values if not isinstance(value, DataFormatError | dict)] == [3]
    faults = [str(value) for value in values if isinstance(value, DataFormatError)]
    assert len(faults) == len(broken)
    assert faults[0] == "not JSON: Expecting value, at line 1, character 1 of the file."
    assert faults[-1].startswith("not JSON: the file ends in the middle of a row, it may be cut short, at line 19")


def test_the_beginning_of_rows_is_the_rows(tmp_path: Path):
    assert next(beginning_of_rows(written(tmp_path, '[{"a": 1}, broken'))) == (1, {"a": 1})
    assert list(beginning_of_rows(written(tmp_path, '{"a": 1}\n{"a": 2}'))) == [(1, {"a": 1}), (2, {"a": 2})]
    with pytest.raises(DataFormatError, match="its array is empty"):
        list(beginning_of_rows(written(tmp_path, "[]")))


def test_of_a_long_object_the_first_list_has_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_rows, "PIECE", 50)
    monkeypatch.setattr(json_rows, "LONG_OBJECT", 100)
    content = {"info": {"year": 2014}, "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(100)], "annotations": []}
    path = written(tmp_path, json.dumps(content))
    assert list(beginning_of_rows(path)) == [(1, {"info": {"year": 2014}, "images": [{"id": 0, "file_name": "0.jpg"}]})]
    assert load_json(path) == content


def test_a_long_broken_row_does_not_hide_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_rows, "PIECE", 50)
    monkeypatch.setattr(json_rows, "LONG_OBJECT", 100)
    first, second = beginning_of_rows(written(tmp_path, '{"a": x' + "a" * 300 + '"}\n{"a": 2}'))
    assert isinstance(first[1], DataFormatError)
    assert second == (2, {"a": 2})


def test_a_whole_file_is_one_value(tmp_path: Path):
    with pytest.raises(DataFormatError, match="text follows the end"):
        load_json(written(tmp_path, "{} {}"))

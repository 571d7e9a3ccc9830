import pytest

from vlm.color.files import csv_text, read_lines, write_whole
from vlm.errors import ConfigError, DataFormatError


def test_a_file_is_written_whole_with_its_folder(tmp_path):
    assert write_whole(tmp_path / "a" / "b.txt", "x\n").read_text(encoding="utf-8") == "x\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_what_cannot_be_written_or_read_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"cannot be written: .*--out"):
        write_whole(tmp_path / "file" / "below.txt", "x")
    with pytest.raises(DataFormatError, match="cannot be read: it is not UTF-8 text"):
        read_lines(tmp_path / "file", what="The list")


def test_cells_with_commas_are_quoted():
    assert csv_text([["", 1], ["a, b", 0.5]]) == ',1\n"a, b",0.5\n'

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vlm.data.archives import integrity
from vlm.data.archives.integrity import check_file, check_head, check_once
from vlm.data.datasets.base import Archive
from vlm.errors import DataFormatError


def made(suffix: str) -> bytes:
    """The bytes of a real file of a kind, by the library that writes it."""
    buffer = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.txt", "a")
    elif suffix == ".tar":
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            archive.addfile(tarfile.TarInfo("a.txt"))
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), buffer)
    else:
        return {".gz": gzip.compress(b"a"), ".json": b'\xef\xbb\xbf\n [{"id": 1}]', ".jsonl": b'{"id": 1}\n', ".csv": b"a,b\n"}[suffix]
    return buffer.getvalue()


KINDS = [".zip", ".tar", ".parquet", ".gz", ".json", ".jsonl", ".csv"]


@pytest.mark.parametrize("suffix", KINDS)
def test_real_files_are_known_by_their_first_bytes(suffix: str):
    check_head(f"a{suffix}", made(suffix)[: integrity.HEAD], origin="here")


@pytest.mark.parametrize("suffix", [suffix for suffix in KINDS if suffix != ".csv"])
def test_other_bytes_are_refused(suffix: str):
    with pytest.raises(DataFormatError, match=rf"here is not a \{suffix} file: it begins with b'Access denie"):
        check_head(f"a{suffix}", b"Access denied" * 100, origin="here")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in</p>", b"\xef\xbb\xbf \n<html lang=en>", b"\n<!doctype HTML>"])
def test_web_page_is_only_an_html_file(page: bytes):
    with pytest.raises(DataFormatError, match=r"here is a web page, not the file a\.csv"):
        check_head("a.csv", page, origin="here")
    check_head("a.html", page, origin="here")


@pytest.mark.parametrize("suffix", [".zip", ".parquet", ".json", ".jsonl"])
def test_a_cut_file_is_refused_where_its_kind_has_an_end(tmp_path: Path, suffix: str):
    path, archive = tmp_path / f"a{suffix}", Archive(file=f"a{suffix}", url="")
    path.write_bytes(made(suffix) + (b" \n" if suffix.startswith(".json") else b""))
    check_file(path, archive)
    path.write_bytes(made(suffix).rstrip()[:-2] if suffix != ".zip" else made(suffix)[:-30])
    with pytest.raises(DataFormatError, match=rf"a\{suffix} is cut short: its \d+ bytes do not end as a file a\{suffix} does\. Get it again\.$"):
        check_file(path, archive)


def test_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataFormatError, match="it is empty"):
        check_file(tmp_path / "a.csv", Archive(file="a.csv", url=""))


def test_size_and_checksum_are_compared_and_both_values_named(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n")
    check_file(path, Archive(file="a.csv", url="", size=4, checksum="sha256:" + hashlib.sha256(b"a,b\n").hexdigest()))
    check_file(path, Archive(file="a.csv", url="", checksum="md5:" + hashlib.md5(b"a,b\n").hexdigest().upper()))
    with pytest.raises(DataFormatError, match=r"a\.csv has 4 bytes, wanted 5\."):
        check_file(path, Archive(file="a.csv", url="", size=5))
    with pytest.raises(DataFormatError, match=f"has the checksum md5:{hashlib.md5(b'a,b' + bytes([10])).hexdigest()}, wanted md5:00"):
        check_file(path, Archive(file="a.csv", url="", checksum="md5:00"))


def test_unknown_kind_of_checksum_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"a")
    with pytest.raises(ValueError, match="begins with sha256: or md5:; got 'crc:12'"):
        check_file(tmp_path / "a.csv", Archive(file="a.csv", url="", checksum="crc:12"))


def test_checksum_is_computed_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    computed = []
    monkeypatch.setattr(integrity.hashlib, "file_digest", lambda file, name: computed.append(name) or hashlib.new(name, file.read()))
    path, record = tmp_path / "a.csv", tmp_path / "notes" / "a.csv.verified"
    path.write_bytes(b"a,b\n")
    archive = Archive(file="a.csv", url="", checksum="sha256:" + hashlib.sha256(b"a,b\n").hexdigest())
    for _ in range(3):
        check_once(path, archive, record)
    assert computed == ["sha256"]
    path.write_bytes(b"a,c\n")
    with pytest.raises(DataFormatError, match="has the checksum"):
        check_once(path, archive, record)
    record.write_text("{damaged", encoding="utf-8")
    path.write_bytes(b"a,b\n")
    check_once(path, archive, record)
    assert len(computed) == 3

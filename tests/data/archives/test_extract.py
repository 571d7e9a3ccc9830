import io
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm.data.archives import extract as module
from vlm.data.archives.extract import extract, is_archive
from vlm.errors import ConfigError, DataFormatError, VLMError

FILES = {"images/1.jpg": random.Random(1).randbytes(5000), "images/deep/2.jpg": b"two" * 3000, "notes.txt": b"", "ünï.txt": b"text"}
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive by the standard library."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, MODES["".join(path.suffixes)]) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o4777
                archive.addfile(member, io.BytesIO(content))
    return path


def pack_raw(path: Path, members: list[tuple[zipfile.ZipInfo | tarfile.TarInfo, bytes]]) -> Path:
    """An archive of members as they are given."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members:
                assert isinstance(member, zipfile.ZipInfo)
                archive.writestr(member, content)
    else:
        with tarfile.open(path, "w") as archive:
            for member, content in members:
                assert isinstance(member, tarfile.TarInfo)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_members_come_out_as_they_went_in(tmp_path: Path, suffix: str):
    archive = pack(tmp_path / f"a{suffix}", FILES)
    target = tmp_path / "out" / "a"
    assert is_archive(archive) and extract(archive, target) == target
    assert found(target) == FILES
    assert sorted(path.name for path in target.parent.iterdir()) == ["a", "a.done"]


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "a.json.gz", "a.gz", "zip"])
def test_other_files_are_no_archives(tmp_path: Path, name: str):
    assert not is_archive(name)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataFormatError, match=r"is no archive; known are \.zip"):
        extract(tmp_path / name, tmp_path / "out")


def test_system_tar_and_unpacking_agree(tmp_path: Path):
    pack(tmp_path / "a.tar.gz", FILES)
    (tmp_path / "system").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar.gz", "-C", tmp_path / "system"], check=True)
    assert found(extract(tmp_path / "a.tar.gz", tmp_path / "out")) == found(tmp_path / "system")


def test_complete_extraction_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = pack(tmp_path / "a.zip", FILES)
    extract(archive, tmp_path / "out")
    monkeypatch.setattr(module.zipfile, "ZipFile", None)
    extract(archive, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_target_of_another_archive_is_replaced(tmp_path: Path, suffix: str):
    extract(pack(tmp_path / f"a{suffix}", FILES), tmp_path / "out")
    assert found(extract(pack(tmp_path / f"a{suffix}", {"new.txt": b"new"}), tmp_path / "out")) == {"new.txt": b"new"}


def test_half_removed_target_of_another_archive_is_never_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = pack(tmp_path / "old.zip", FILES), pack(tmp_path / "new.zip", {"new.txt": b"new"})
    extract(old, tmp_path / "out")

    def interrupted(folder: Path, **keywords: bool) -> None:
        (folder / "notes.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.shutil, "rmtree", interrupted)
        extract(new, tmp_path / "out")
    assert found(extract(old, tmp_path / "out")) == FILES


def test_two_processes_do_not_extract_to_one_folder(tmp_path: Path):
    from filelock import FileLock

    with FileLock(tmp_path / "out.lock"), pytest.raises(ConfigError, match=r"Another process is writing .*out\."):
        extract(pack(tmp_path / "a.zip", FILES), tmp_path / "out")


def test_folder_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="out exists and was not extracted from an archive here"):
        extract(pack(tmp_path / "a.zip", FILES), tmp_path / "out")
    assert found(tmp_path / "out") == {"mine.txt": b"mine"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_interrupted_extraction_goes_on(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    files = {f"{i}.bin": random.Random(i).randbytes(1000 + i) for i in range(20)}
    archive, written = pack(tmp_path / f"a{suffix}", files), []
    store = module._Tree.store

    def interrupted(tree: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        store(tree, path, *arguments, **keywords)
        written.append(path.name)

    monkeypatch.setattr(module._Tree, "store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "out")
    assert len(found(tmp_path / "out")) == 12 and not (tmp_path / "out.done").exists()
    (tmp_path / "out" / "3.bin").write_bytes(files["3.bin"][:-1])  # not complete
    written.clear()
    assert found(extract(archive, tmp_path / "out")) == files
    assert sorted(written) == sorted(["3.bin", *(f"{i}.bin" for i in range(12, 20))])


def test_file_of_right_size_and_wrong_content_is_written_again_from_a_zip(tmp_path: Path):
    archive = pack(tmp_path / "a.zip", FILES)
    extract(archive, tmp_path / "out")
    (tmp_path / "out.done").rename(tmp_path / "out.begun")
    (tmp_path / "out" / "ünï.txt").write_bytes(b"TEXT")
    assert found(extract(archive, tmp_path / "out")) == FILES


UNSAFE = ["../x", "a/../../x", "/x", "C:x", "C:\\x", "..\\x", "a\\..\\..\\x", "\\x"]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, suffix: str):
    info = zipfile.ZipInfo("a") if suffix == ".zip" else tarfile.TarInfo(name)
    if isinstance(info, zipfile.ZipInfo):
        info.filename = name
    archive = pack_raw(tmp_path / f"a{suffix}", [(info, b"x")])
    with pytest.raises(DataFormatError, match=r"holds the name .* which leads out of its folder"):
        extract(archive, tmp_path / "in" / "out")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("x")]


def test_backslashes_are_folders(tmp_path: Path):
    info = zipfile.ZipInfo("a")
    info.filename = "images\\1.jpg"
    assert found(extract(pack_raw(tmp_path / "a.zip", [(info, b"x")]), tmp_path / "out")) == {"images/1.jpg": b"x"}


def linked(name: str, kind: bytes, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_links_and_devices_of_a_tar_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kinds = {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "f": tarfile.FIFOTYPE}
    members: list[Any] = [(linked(name, kind, "/etc"), b"") for name, kind in kinds.items()]
    members.append((tarfile.TarInfo("s/passwd"), b"mine"))  # through the link, if it were made
    assert found(extract(pack_raw(tmp_path / "a.tar", members), tmp_path / "out")) == {"s/passwd": b"mine"}
    assert not (tmp_path / "out" / "s").is_symlink()
    assert caplog.messages == ["a.tar: 5 links or devices left out, the first is s"]


def test_links_of_a_zip_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    link = zipfile.ZipInfo("s")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    assert found(extract(pack_raw(tmp_path / "a.zip", [(link, b"/etc"), (zipfile.ZipInfo("a"), b"a")]), tmp_path / "out")) == {"a": b"a"}
    assert caplog.messages == ["a.zip: 1 links or devices left out, the first is s"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_what_macos_adds_is_left_out(tmp_path: Path, suffix: str):
    junk = {"__MACOSX/images/._1.jpg": b"x", "images/._1.jpg": b"x", ".DS_Store": b"x", "._images": b"x"}
    assert found(extract(pack(tmp_path / f"a{suffix}", junk | FILES), tmp_path / "out")) == FILES


def test_modes_are_not_carried_over(tmp_path: Path):
    extract(pack(tmp_path / "a.tar", FILES), tmp_path / "out")
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_same_name_twice_is_refused_unless_it_is_the_same_file(tmp_path: Path):
    same = pack_raw(tmp_path / "same.zip", [(zipfile.ZipInfo("a"), b"a"), (zipfile.ZipInfo("./a"), b"a")])
    assert found(extract(same, tmp_path / "same")) == {"a": b"a"}
    with pytest.raises(DataFormatError, match="holds 'a' twice"):
        extract(pack_raw(tmp_path / "b.zip", [(zipfile.ZipInfo("a"), b"a"), (zipfile.ZipInfo("a"), b"b")]), tmp_path / "b")
    with pytest.raises(DataFormatError, match=r"holds '\./a' twice"):
        extract(pack(tmp_path / "c.tar", {"a": b"a", "./a": b"a"}), tmp_path / "c")


def test_encrypted_zip_is_named(tmp_path: Path):
    content = bytearray(pack(tmp_path / "a.zip", {"secret.txt": b"x"}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"is encrypted \('secret\.txt'\)\. Extract it by hand with its password"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_member_with_wrong_checksum_is_named_and_gets_no_file(tmp_path: Path):
    content = bytearray(pack(tmp_path / "a.zip", {"good.txt": b"good", "bad.bin": FILES["images/1.jpg"]}).read_bytes())
    content[content.index(FILES["images/1.jpg"][100:200])] ^= 1  # random bytes are stored as they are
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"the member 'bad\.bin' is damaged \(Bad CRC-32.*\)\. Delete it and get it again"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert found(tmp_path / "out") == {"good.txt": b"good"} and not (tmp_path / "out.done").exists() and not (tmp_path / "out.tmp").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.99])
def test_archive_that_is_cut_short_is_never_complete(tmp_path: Path, suffix: str, share: float):
    archive = pack(tmp_path / f"a{suffix}", FILES)
    content = archive.read_bytes()
    end = int(len(content) * share)
    if suffix == ".tar" and share == 0.99:  # within the zeros at its end: nothing is missing
        end = 512 + 5120 + 512 + 512  # between two members
    archive.write_bytes(content[:end])
    with pytest.raises(DataFormatError, match="cannot be extracted"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out.done").exists()


def test_broken_header_within_a_tar_is_not_its_end(tmp_path: Path):
    content = bytearray(pack(tmp_path / "a.tar", FILES).read_bytes())
    content[512 + 5120 + 20] ^= 1  # the name of the second member
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataFormatError, match="something else than a member follows at byte 5,632"):
        extract(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, suffix: str):
    """Bytes turned over at random: an archive comes out as it went in, or not at all; a tar file has no checksum of contents."""
    archive, random_ = pack(tmp_path / f"a{suffix}", FILES), random.Random(3)
    content, refused = archive.read_bytes(), 0
    for i in range(60):
        damaged = bytearray(content)
        damaged[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        archive.write_bytes(damaged)
        try:
            came = found(extract(archive, tmp_path / str(i)))
            assert suffix == ".tar" or came == FILES
        except VLMError:
            refused += 1
    assert refused > (5 if suffix == ".tar" else 40)


def test_bomb_is_refused_by_what_it_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "HARMLESS", 1000)
    for suffix in (".zip", ".tar.gz"):
        archive = pack(tmp_path / f"a{suffix}", {f"{i}": bytes(2_000_000) for i in range(2)})
        monkeypatch.setattr(module, "MAX_RATIO", 4_000_000 // archive.stat().st_size - 1)
        with pytest.raises(DataFormatError, match=r"claims to hold 4,000,000 bytes, over \d+ times its own size"):
            extract(archive, tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    archive = pack(tmp_path / f"a{suffix}", {"a": bytes(600_000), "b": bytes(600_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(ConfigError, match=r"out needs .* more, its disk has 500\.0 kB free"):
        extract(archive, tmp_path / "out")
    assert not found(tmp_path / "out")


def test_more_than_declared_does_not_come_out(tmp_path: Path):
    content = bytearray(pack(tmp_path / "a.zip", {"a": bytes(100_000)}).read_bytes())
    at = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, at + 24, 10)  # the directory says that it is 10 bytes
    struct.pack_into("<I", content, at + 16, zlib.crc32(bytes(100_000)))
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataFormatError, match="the member 'a' is damaged"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert not found(tmp_path / "out")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python reads zstd")
def test_zstd_names_the_remedy(tmp_path: Path):
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(DataFormatError, match=r"Python reads from 3\.14 on\. Make it a \.tar by hand: zstd -d a\.tar\.zst"):
        extract(tmp_path / "a.tar.zst", tmp_path / "out")


def test_missing_archive_and_occupied_target_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.zip cannot be extracted \(No such file or directory: .*a\.zip\)"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="exists and was not extracted"):
        extract(pack(tmp_path / "a.zip", FILES), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_progress_adds_up_to_the_whole(tmp_path: Path, suffix: str):
    archive, calls = pack(tmp_path / f"a{suffix}", FILES), []

    class Meter:
        def start(self, name: str, total: int | None, *, have: int = 0) -> None:
            calls.append(total)

        def advance(self, name: str, count: int) -> None:
            calls.append(count)

        def done(self, name: str) -> None:
            calls.append(name)

    extract(archive, tmp_path / "out", meter=Meter())
    total, *counts, name = calls
    assert name == archive.name
    if suffix == ".zip":
        assert sum(counts) == total == sum(len(content) for content in FILES.values())
    else:
        assert total == archive.stat().st_size and 0.3 * total < sum(counts) <= total  # without the zeros at the end

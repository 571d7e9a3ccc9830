import hashlib
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
from collections import defaultdict
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server

from vlm.data.archives import transfer
from vlm.data.archives.download import DownloadError, check_space, fetch
from vlm.data.datasets.base import Archive
from vlm.errors import ConfigError, DataFormatError

ROOT = Path(__file__).parents[2]
DATA = random.Random(0).randbytes(1_000_000)
OTHER = random.Random(1).randbytes(1_000_000)
HALF = 2 * transfer.CHUNK  # whole reads, all of which are kept at a cut


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(transfer, "ATTEMPTS", 4)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ranges(server: ArchiveServer) -> list[str]:
    return [seen.headers.get("range", "") for seen in server.requests]


def interrupted(server: ArchiveServer, folder: Path, **behavior: Any) -> Archive:
    """An archive whose first half came before the download gave up; its server is healthy again."""
    archive = Archive(file="a.bin", url=server.serve("a.bin", DATA, cut_after=HALF, **behavior))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DownloadError):
        patch.setattr(transfer, "ATTEMPTS", 1)
        fetch([archive], folder)
    server.requests.clear()
    assert (folder / "a.bin.part").read_bytes() == DATA[:HALF]
    return archive


class Recorder:
    """A meter that adds up."""

    def __init__(self) -> None:
        self.have, self.totals, self.complete = defaultdict(int), {}, []

    def start(self, name: str, total: int | None, *, have: int = 0) -> None:
        self.have[name], self.totals[name] = have, total

    def advance(self, name: str, count: int) -> None:
        self.have[name] += count

    def done(self, name: str) -> None:
        self.complete.append(name)


def test_files_come_at_the_same_time_and_are_found_again(archive_server: ArchiveServer, tmp_path: Path):
    contents = {f"{i}.bin": random.Random(i).randbytes(300_000) for i in range(6)}
    archives = [Archive(file=name, url=archive_server.serve(f"x/{name}", content, pause=0.02)) for name, content in contents.items()]
    meter = Recorder()
    places = fetch(archives, tmp_path / "new", parallel=3, meter=meter)
    assert {name: path.read_bytes() for name, path in places.items()} == contents
    assert places["0.bin"] == tmp_path / "new" / "0.bin"
    assert archive_server.most_at_once == 3
    assert sorted(meter.complete) == sorted(contents) and dict(meter.have) == {name: 300_000 for name in contents} == meter.totals
    assert names(tmp_path / "new") == sorted(contents)
    assert fetch(archives, tmp_path / "new") == places
    assert len(archive_server.requests) == 6


def test_product_names_itself_and_redirects_are_followed(archive_server: ArchiveServer, tmp_path: Path):
    real = archive_server.serve("real/a.bin", DATA)
    url = archive_server.serve("a.bin", b"", first=[(302, {"Location": real})])
    assert fetch([Archive(file="a.bin", url=url)], tmp_path)["a.bin"].read_bytes() == DATA
    assert archive_server.requests[0].headers["user-agent"].startswith("vlm/")


@pytest.mark.parametrize("served", [{"etag": '"1"'}, {"last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, {"etag": 'W/"1"'}])
def test_cut_connection_goes_on_where_it_was(archive_server: ArchiveServer, tmp_path: Path, served: dict[str, str]):
    url = archive_server.serve("a.bin", DATA, cut_after=HALF, **served)
    meter = Recorder()
    assert fetch([Archive(file="a.bin", url=url, checksum=sha256(DATA))], tmp_path, meter=meter)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == ["", f"bytes={HALF}-"]
    strong = served.get("etag", "").removeprefix('W/"1"') or served.get("last_modified")
    assert archive_server.requests[1].headers.get("if-range") == strong
    assert meter.have == {"a.bin": len(DATA)}
    assert names(tmp_path) == ["a.bin", "a.bin.verified"]


def test_next_run_goes_on_where_a_failed_one_was(archive_server: ArchiveServer, tmp_path: Path):
    archive = interrupted(archive_server, tmp_path, etag='"1"')
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == [f"bytes={HALF}-"]


@pytest.mark.parametrize(
    "change", [{"etag": '"2"'}, {"etag": '"2"', "if_range": False}, {"etag": "", "if_range": False, "content": OTHER + b"longer"}]
)
def test_changed_file_starts_anew(archive_server: ArchiveServer, tmp_path: Path, change: dict[str, Any]):
    archive = interrupted(archive_server, tmp_path, etag='"1"')
    for name, value in ({"content": OTHER} | change).items():
        setattr(archive_server.files["a.bin"], name, value)
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == change.get("content", OTHER)
    assert ranges(archive_server)[0] == f"bytes={HALF}-"


def test_other_address_starts_anew(archive_server: ArchiveServer, tmp_path: Path):
    interrupted(archive_server, tmp_path)
    archive_server.serve("mirror/a.bin", OTHER)
    assert (
        fetch([Archive(file="a.bin", url="https://example.org/a.bin")], tmp_path, mirror=f"{archive_server.url}/mirror/")["a.bin"].read_bytes()
        == OTHER
    )
    assert ranges(archive_server) == [""]


@pytest.mark.parametrize("served", [{"ranges": False}, {"ranges": False, "chunked": True}])
def test_server_without_ranges_starts_anew(archive_server: ArchiveServer, tmp_path: Path, served: dict[str, bool]):
    archive = interrupted(archive_server, tmp_path, **served)
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == [f"bytes={HALF}-"]


def test_complete_part_needs_no_request(archive_server: ArchiveServer, tmp_path: Path):
    archive = interrupted(archive_server, tmp_path)
    (tmp_path / "a.bin.part").write_bytes(DATA)
    meter = Recorder()
    assert fetch([archive], tmp_path, meter=meter)["a.bin"].read_bytes() == DATA
    assert not archive_server.requests
    assert (meter.have, meter.complete) == ({"a.bin": len(DATA)}, ["a.bin"])


def test_complete_part_of_unknown_size_is_taken_when_no_more_is_there(archive_server: ArchiveServer, tmp_path: Path):
    archive = interrupted(archive_server, tmp_path, chunked=True)
    (tmp_path / "a.bin.part").write_bytes(DATA)
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == [f"bytes={len(DATA)}-"]


def test_file_that_became_shorter_starts_anew(archive_server: ArchiveServer, tmp_path: Path):
    archive = interrupted(archive_server, tmp_path)
    archive_server.files["a.bin"].content = OTHER[:1000]
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == OTHER[:1000]
    assert ranges(archive_server) == [f"bytes={HALF}-", ""]


@pytest.mark.parametrize("said", ["bytes 0-999999/1000000", "bytes 100-999999/1000000", "bytes 524288-999999/999999", "nonsense", ""])
def test_other_piece_than_asked_for_is_not_appended(archive_server: ArchiveServer, tmp_path: Path, said: str):
    archive = interrupted(archive_server, tmp_path)
    archive_server.files["a.bin"].first.append((206, {"Content-Range": said}))
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == [f"bytes={HALF}-", ""]


def test_untrusted_certificate_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def untrusted(*arguments: Any, **keywords: Any) -> None:
        asked.append(arguments)
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate"))

    monkeypatch.setattr(transfer.urllib.request, "urlopen", untrusted)
    with pytest.raises(DownloadError, match="cannot be downloaded: certificate verify failed: self-signed"):
        fetch([Archive(file="a.bin", url="https://example.org/a.bin")], tmp_path)
    assert len(asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_faults_that_pass_are_tried_again(archive_server: ArchiveServer, tmp_path: Path, status: int):
    url = archive_server.serve("a.bin", DATA, first=[(status, {}), (status, {})])
    assert fetch([Archive(file="a.bin", url=url)], tmp_path)["a.bin"].read_bytes() == DATA
    assert len(archive_server.requests) == 3


@pytest.mark.parametrize("after", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_is_waited_for(archive_server: ArchiveServer, tmp_path: Path, after: Any):
    url = archive_server.serve("a.bin", DATA, first=[(429, {"Retry-After": after()})])
    start = time.monotonic()
    fetch([Archive(file="a.bin", url=url)], tmp_path)
    assert time.monotonic() - start > 0.9


def test_long_retry_after_ends_the_download(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.bin", DATA, first=[(503, {"Retry-After": "7200"})])
    with pytest.raises(DownloadError, match=r"answered 503 .* and asks to wait 7,200 s\. Start again later\."):
        fetch([Archive(file="a.bin", url=url)], tmp_path)


def test_waits_double_up_to_the_longest(archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 6)
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.04)
    monkeypatch.setattr(transfer, "random", SimpleNamespace(uniform=lambda low, high: high))
    waits = []
    monkeypatch.setattr(transfer.log, "warning", lambda *arguments: waits.append(arguments[-1]))
    url = archive_server.serve("a.bin", DATA, first=[(500, {})] * 6)
    with pytest.raises(DownloadError, match=r"answered 500 \(Internal Server Error\), at 6 attempts in a row"):
        fetch([Archive(file="a.bin", url=url)], tmp_path)
    assert waits == [0.01, 0.02, 0.04, 0.04, 0.04]


def test_attempts_that_bring_bytes_are_not_counted(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.bin", DATA * 2, cut_after=transfer.CHUNK, faults=100)
    assert fetch([Archive(file="a.bin", url=url)], tmp_path)["a.bin"].read_bytes() == DATA * 2
    assert len(archive_server.requests) == 8 > transfer.ATTEMPTS


def test_same_cut_again_and_again_ends_the_download_and_keeps_the_bytes(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.bin", DATA, cut_after=HALF, faults=100, ranges=False)
    with pytest.raises(DownloadError, match=r"ended after 524,288 of 1,000,000 bytes, at 4 attempts in a row\. The 524,288 bytes that came are kept"):
        fetch([Archive(file="a.bin", url=url)], tmp_path)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_final_and_name_status_and_remedies(archive_server: ArchiveServer, tmp_path: Path, status: int):
    url = archive_server.serve("a.bin", DATA, first=[(status, {})] * 2)
    with pytest.raises(DownloadError, match=rf"{url} cannot be downloaded: the server answered {status} .*--mirror.*--from-archives"):
        fetch([Archive(file="a.bin", url=url)], tmp_path)
    assert len(archive_server.requests) == 1


def test_server_that_is_not_there_is_named(archive_server: ArchiveServer, tmp_path: Path):
    archive_server.close()
    with pytest.raises(DownloadError, match=r"/a\.bin cannot be downloaded: the connection failed \(Connection refused\), at 4 attempts"):
        fetch([Archive(file="a.bin", url=f"{archive_server.url}/a.bin")], tmp_path)


def test_silent_server_counts_as_cut(archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "TIMEOUT", 0.2)
    url = archive_server.serve("a.bin", DATA, stall_after=HALF)
    assert fetch([Archive(file="a.bin", url=url)], tmp_path)["a.bin"].read_bytes() == DATA
    assert ranges(archive_server) == ["", f"bytes={HALF}-"]


def test_truncated_chunks_count_as_cut(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.bin", DATA, chunked=True, cut_after=HALF)
    assert fetch([Archive(file="a.bin", url=url)], tmp_path)["a.bin"].read_bytes() == DATA


def test_length_that_is_a_lie_ends_the_download(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.bin", DATA, length=len(DATA) + 1)
    with pytest.raises(DownloadError, match=r"at 4 attempts in a row"):
        fetch([Archive(file="a.bin", url=url)], tmp_path)
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("served", [{}, {"chunked": True}])
def test_other_size_than_published_is_refused(archive_server: ArchiveServer, tmp_path: Path, served: dict[str, bool]):
    url = archive_server.serve("a.bin", DATA, **served)
    with pytest.raises(DataFormatError, match=r"a\.bin has [\d,]+ bytes, wanted 400,000"):
        fetch([Archive(file="a.bin", url=url, size=400_000)], tmp_path)
    assert not names(tmp_path)


def test_wrong_checksum_deletes_the_file_and_names_both(archive_server: ArchiveServer, tmp_path: Path):
    archive = Archive(file="a.bin", url=archive_server.serve("a.bin", OTHER), checksum=sha256(DATA))
    with pytest.raises(DataFormatError, match=f"has the checksum {sha256(OTHER)}, wanted {sha256(DATA)}"):
        fetch([archive], tmp_path)
    assert not names(tmp_path)


def test_file_that_became_wrong_on_disk_is_downloaded_anew(archive_server: ArchiveServer, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    archive = Archive(file="a.bin", url=archive_server.serve("a.bin", DATA), checksum=sha256(DATA))
    fetch([archive], tmp_path)
    (tmp_path / "a.bin").write_bytes(DATA[:-1])
    assert fetch([archive], tmp_path)["a.bin"].read_bytes() == DATA
    assert "has the checksum" in caplog.text and caplog.text.rstrip().endswith("Downloading it anew.")


PAGE = b"<!DOCTYPE html><title>Sign in</title>" + b" " * 2000


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_web_page_is_never_taken_for_data(archive_server: ArchiveServer, tmp_path: Path, kind: str):
    url = archive_server.serve("a.zip", PAGE, content_type=kind)
    with pytest.raises((DownloadError, DataFormatError), match=r"a web page.*--from-archives"):
        fetch([Archive(file="a.zip", url=url)], tmp_path)
    assert not names(tmp_path)


def test_wrong_kind_is_seen_at_the_first_bytes(archive_server: ArchiveServer, tmp_path: Path):
    url = archive_server.serve("a.zip", b"\x00" * 3_000_000, pause=0.2)
    start = time.monotonic()
    with pytest.raises(DataFormatError, match=r"is not a \.zip file"):
        fetch([Archive(file="a.zip", url=url)], tmp_path)
    assert time.monotonic() - start < 3  # the whole takes 9 s
    assert not names(tmp_path)


def test_same_archive_twice_is_one_download(archive_server: ArchiveServer, tmp_path: Path):
    archive = Archive(file="a.bin", url=archive_server.serve("a.bin", DATA))
    assert fetch([archive, archive], tmp_path) == {"a.bin": tmp_path / "a.bin"}
    assert len(archive_server.requests) == 1


@pytest.mark.parametrize("name", ["a.bin", "A.BIN"])
def test_two_addresses_under_one_name_are_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="Two archives have the name"):
        fetch([Archive(file="a.bin", url="https://example.org/1"), Archive(file=name, url="https://example.org/2")], tmp_path)


@pytest.mark.parametrize("name", ["../a.bin", "/a.bin", ""])
def test_name_that_leads_out_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="leads out of its folder"):
        fetch([Archive(file=name, url="https://example.org/1")], tmp_path)


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))


def test_space_is_checked_before_the_first_request(archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archives = [Archive(file=f"{i}.bin", url=archive_server.serve(f"{i}.bin", DATA), size=len(DATA)) for i in range(3)]
    free(monkeypatch, 2_999_999)
    with pytest.raises(ConfigError, match=r"new needs 3\.0 MB more, its disk has 3\.0 MB free"):
        fetch(archives, tmp_path / "new")
    assert not archive_server.requests
    free(monkeypatch, 3_000_000)
    fetch(archives, tmp_path / "new")


def test_size_that_only_the_server_knows_is_checked_before_the_first_byte(
    archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free(monkeypatch, 999_999)
    with pytest.raises(ConfigError, match=r"needs 1\.0 MB more"):
        fetch([Archive(file="a.bin", url=archive_server.serve("a.bin", DATA))], tmp_path)
    assert not (tmp_path / "a.bin.part").exists()


def test_only_what_is_still_to_come_needs_space(archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = interrupted(archive_server, tmp_path)
    free(monkeypatch, len(DATA) - HALF)
    fetch([archive], tmp_path)


def test_check_space_takes_a_folder_that_is_not_there(tmp_path: Path):
    check_space(tmp_path / "a" / "b", needed=1)
    with pytest.raises(ConfigError, match=r"b needs .* more, its disk has .* free\. Free space there, or choose another folder"):
        check_space(tmp_path / "a" / "b", needed=10**18)


def test_full_disk_is_no_fault_of_the_server(archive_server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", full)
    with pytest.raises(ConfigError, match=r"\(No space left on device: .*free space there"):
        fetch([Archive(file="a.bin", url=archive_server.serve("a.bin", DATA))], tmp_path)
    assert len(archive_server.requests) == 1


def test_mirror_folder_is_copied_from(archive_server: ArchiveServer, tmp_path: Path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "a b.bin").write_bytes(DATA)
    places = fetch([Archive(file="a b.bin", url="https://example.org/x", size=len(DATA))], tmp_path / "here", mirror=str(tmp_path / "share"))
    assert places == {"a b.bin": tmp_path / "here" / "a b.bin"} and places["a b.bin"].read_bytes() == DATA


def test_mirror_folder_without_the_file_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--mirror .*share is not a folder\."):
        fetch([Archive(file="a.bin", url="https://example.org/x")], tmp_path, mirror=str(tmp_path / "share"))
    (tmp_path / "share").mkdir()
    with pytest.raises(ConfigError, match=r"share lacks a\.bin \(size not known, https://example\.org/x\)"):
        fetch([Archive(file="a.bin", url="https://example.org/x")], tmp_path, mirror=str(tmp_path / "share"))


def test_given_files_are_used_where_they_lie(archive_server: ArchiveServer, tmp_path: Path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.bin").write_bytes(DATA)
    (given / "b c.bin").write_bytes(OTHER)  # under the name of its address
    archives = [Archive(file="a.bin", url="", checksum=sha256(DATA)), Archive(file="b.bin", url="https://example.org/x/b%20c.bin?download=1")]
    places = fetch(archives, tmp_path / "here", from_archives=given)
    assert places == {"a.bin": given / "a.bin", "b.bin": given / "b c.bin"}
    assert names(given) == ["a.bin", "b c.bin"] and names(tmp_path / "here") == ["a.bin.verified"]


def test_given_file_of_a_common_address_name_is_not_guessed(tmp_path: Path):
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04")
    archives = [Archive(file=f"{i}.zip", url=f"https://example.org/{i}/images.zip", size=4) for i in "ab"]
    with pytest.raises(ConfigError, match=r"lacks a\.zip \(4 bytes, https://example\.org/a/images\.zip\), b\.zip \(4 bytes, .*\)\. Get them by hand"):
        fetch(archives, tmp_path, from_archives=tmp_path)


def test_given_file_that_is_wrong_is_refused_and_stays(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(OTHER)
    with pytest.raises(DataFormatError, match="has the checksum"):
        fetch([Archive(file="a.bin", url="", checksum=sha256(DATA))], tmp_path, from_archives=tmp_path)
    assert names(tmp_path) == ["a.bin"]


def test_contradictions_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="come from one place"):
        fetch([], tmp_path, from_archives=tmp_path, mirror="https://example.org")
    with pytest.raises(ConfigError, match="is not a folder"):
        fetch([], tmp_path, from_archives=tmp_path / "no")
    with pytest.raises(ConfigError, match="a folder or an http address; got ftp://"):
        fetch([Archive(file="a.bin", url="")], tmp_path, mirror="ftp://example.org")
    with pytest.raises(ConfigError, match="At least one download"):
        fetch([], tmp_path, parallel=0)


def test_archive_without_a_link_must_be_got_by_hand(archive_server: ArchiveServer, tmp_path: Path):
    other = Archive(file="b.bin", url=archive_server.serve("b.bin", DATA))
    by_hand = Archive(file="a.bin", url="", size=len(DATA), page="https://example.org/drive")
    with pytest.raises(ConfigError, match=r"got by hand: a\.bin \(1\.0 MB, https://example\.org/drive\)\. .*--from-archives"):
        fetch([other, by_hand], tmp_path)
    assert not archive_server.requests
    (tmp_path / "a.bin").write_bytes(DATA)
    assert fetch([other, by_hand], tmp_path).keys() == {"a.bin", "b.bin"}


def test_two_processes_do_not_write_one_file(archive_server: ArchiveServer, tmp_path: Path):
    from filelock import FileLock

    with FileLock(tmp_path / "a.bin.lock"), pytest.raises(ConfigError, match=r"Another process is writing .*a\.bin"):
        fetch([Archive(file="a.bin", url=archive_server.serve("a.bin", DATA))], tmp_path)


def test_first_error_stops_the_others_and_keeps_what_came(archive_server: ArchiveServer, tmp_path: Path):
    slow = Archive(file="slow.bin", url=archive_server.serve("slow.bin", DATA * 3, pause=0.1))
    gone = Archive(file="gone.bin", url=f"{archive_server.url}/gone.bin")
    archive_server.serve("gone.bin", b"", pause=0, first=[(500, {"Retry-After": "1"}), (404, {})])
    start = time.monotonic()
    with pytest.raises(DownloadError, match="404"):
        fetch([slow, gone], tmp_path)
    assert time.monotonic() - start < 4.5  # the slow one alone takes 4.6 s
    assert 0 < (tmp_path / "slow.bin.part").stat().st_size < len(DATA) * 3


def interruptible() -> None:
    """Programs started in the background of a shell ignore interrupts, and so do the programs that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


FETCH = """
import json, sys
from pathlib import Path
from vlm.data.datasets.base import Archive
from vlm.data.archives.download import fetch
print("ready", flush=True)
fetch([Archive(**archive) for archive in json.loads(sys.argv[1])], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_process_leaves_what_the_next_one_goes_on_from(archive_server: ArchiveServer, tmp_path: Path, how: signal.Signals):
    files = [
        {"file": f"{i}.bin", "url": archive_server.serve(f"{i}.bin", DATA, etag=f'"{i}"', stall_after=HALF), "checksum": sha256(DATA)}
        for i in range(2)
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, json.dumps(files), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    )
    parts = [tmp_path / f"{i}.bin.part" for i in range(2)]
    until = time.monotonic() + 20
    while [part.stat().st_size if part.exists() else 0 for part in parts] != [HALF, HALF]:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    start = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - start < 15  # a minute, if the silent server were waited for
    assert process.returncode and (how == signal.SIGKILL or b"KeyboardInterrupt" in said)
    archive_server.requests.clear()
    places = fetch([Archive(**file) for file in files], tmp_path)
    assert [path.read_bytes() for path in places.values()] == [DATA, DATA]
    assert ranges(archive_server) == [f"bytes={HALF}-"] * 2

"""Pictures from a server on this machine, which is private, so each test says what it allows; and addresses that no test can be at."""

import contextlib
import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server
from PIL import Image

from vlm.data import remote
from vlm.data.remote import FetchError, FetchRules, fetch_bytes, fetch_image, is_public
from vlm.errors import DataFormatError

HERE = FetchRules(allow_private=True, seconds=10.0)


def png(*size: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def names(monkeypatch):
    """`names["cat.test"] = ["127.0.0.1"]`: what names stand for; and the names that were looked up."""
    book: dict[str, list[str]] = {}
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host, port, *rest, **options):
        if host not in book:
            return real(host, port, *rest, **options)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in book[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    book["asked"] = asked
    return book


def test_a_picture_is_fetched(archive_server: ArchiveServer):
    url = archive_server.serve("a%20cat.png", png(4, 3), content_type="image/png")
    picture = fetch_image(url.replace("%20", " ") + "?size=4", HERE)
    assert (picture.size, picture.getpixel((0, 0)), picture.mode) == ((4, 3), (255, 0, 0), "RGB")
    assert archive_server.requests[0].headers["user-agent"].startswith("vlm/")
    assert archive_server.requests[0].path == "a%20cat.png"


def test_chunks_without_a_length_are_put_together(archive_server: ArchiveServer):
    content = png(300, 300)
    assert fetch_bytes(archive_server.serve("a.png", content, chunked=True), HERE) == content


def test_this_machine_is_not_asked_unless_allowed(archive_server: ArchiveServer):
    url = archive_server.serve("a.png", png(4, 3))
    for spelling in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "0x7f.1"), url.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
        with pytest.raises(FetchError, match="which is no public address"):
            fetch_image(spelling)
    assert archive_server.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses_are_told_from_others(address, public):
    assert is_public(address) is public


def test_one_private_address_of_a_host_is_enough_to_refuse_it(names):
    names["cat.test"] = ["8.8.8.8", "10.0.0.1"]
    with pytest.raises(FetchError, match=r"cat\.test is at 10\.0\.0\.1, which is no public address"):
        fetch_image("http://cat.test/a.png")


def test_the_connection_goes_to_the_address_that_was_judged(archive_server: ArchiveServer, names):
    port = archive_server.serve("a.png", png(4, 3)).split(":")[2].split("/")[0]
    names["cat.test"] = ["127.0.0.1"]
    fetch_image(f"http://cat.test:{port}/a.png", HERE)
    assert names["asked"] == ["cat.test"]
    assert archive_server.requests[0].headers["host"] == f"cat.test:{port}"


def test_a_redirect_is_judged_anew(archive_server: ArchiveServer, names, monkeypatch):
    url = archive_server.serve("a.png", b"", first=[(302, {"Location": "http://inside.test/secret"})])
    names["inside.test"] = ["127.0.0.2"]
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(FetchError, match=r"inside\.test is at 127\.0\.0\.2, which is no public address"):
        fetch_image(url)
    archive_server.serve("b.png", b"", first=[(302, {"Location": "file:///etc/passwd"})])
    with pytest.raises(FetchError, match=r"'file:///etc/passwd' is not fetched: only http and https URLs"):
        fetch_image(url.replace("a.png", "b.png"))


def test_redirects_are_followed_but_not_for_ever(archive_server: ArchiveServer):
    archive_server.serve("to/b.png", png(4, 3))
    url = archive_server.serve("a.png", b"", first=[(301, {"Location": "to/b.png"})])
    assert fetch_image(url, HERE).size == (4, 3)
    archive_server.serve("a.png", b"", first=[(302, {"Location": "/a.png"})] * 9)
    with pytest.raises(FetchError, match=r"a\.png cannot be fetched: it redirects more than 5 times"):
        fetch_image(url, HERE)


def test_a_redirect_to_what_is_no_url_is_one_line(archive_server: ArchiveServer):
    url = archive_server.serve("a.png", b"", first=[(302, {"Location": "http://[::bad/"})])
    with pytest.raises(FetchError, match=r"a\.png cannot be fetched: it redirects to 'http://\[::bad/', which is no URL"):
        fetch_image(url, HERE)


def test_what_a_server_sends_instead_of_http_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"no\tHTTP \r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(FetchError) as error:
            fetch_image(f"http://127.0.0.1:{server.getsockname()[1]}/a.png", HERE)
        thread.join()
    assert "cannot be fetched: no HTTP. Download" in str(error.value)


def test_hosts_that_are_not_listed_are_not_even_looked_up(names):
    names["cat.test"] = ["127.0.0.1"]
    with pytest.raises(FetchError, match=r"cat\.test is not an allowed host\. Allowed: dog\.test"):
        fetch_image("http://cat.test/a.png", replace(HERE, hosts=frozenset({"dog.test"})))
    assert names["asked"] == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://8.8.8.8/a.png", "only http and https URLs"),
        ("file:///etc/passwd", "only http and https URLs"),
        ("http://me:secret@8.8.8.8/a.png", "only http and https URLs without a user name"),
        ("http:///a.png", "only http and https URLs"),
        ("http://8.8.8.8:port/a.png", "is no URL"),
        ("http://[8.8/a.png", "is no URL"),
        ("http://nowhere.invalid/a.png", r"the host 'nowhere\.invalid' is not found"),
        (f"http://{'a' * 64}.com/a.png", "is not found"),
        ("http://8.8.8.8/\ud800.png", "is no URL"),
    ],
)
def test_what_is_no_public_url_is_refused(url, reason):
    with pytest.raises(FetchError, match=reason):
        fetch_image(url)


def test_the_length_is_limited_whatever_the_server_says_of_it(archive_server: ArchiveServer):
    rules = replace(HERE, max_bytes=1000)
    with pytest.raises(FetchError, match=r"the file has 5,000 bytes, and 1,000 are allowed"):
        fetch_bytes(archive_server.serve("a.png", bytes(5000)), rules)
    with pytest.raises(FetchError, match=r"the file has more bytes, and 1,000 are allowed"):
        fetch_bytes(archive_server.serve("b.png", bytes(5000), chunked=True), rules)
    assert len(fetch_bytes(archive_server.serve("c.png", bytes(1000)), rules)) == 1000


def test_pixels_are_counted_before_they_are_decoded(archive_server: ArchiveServer, monkeypatch):
    url = archive_server.serve("a.png", png(40, 30))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DataFormatError, match=r"a\.png has 40x30 pixels, and 1,199 are allowed"):
        fetch_image(url, replace(HERE, max_pixels=1199))


@pytest.mark.parametrize(
    ("content", "behavior", "error", "reason"),
    [
        (b"<html>", {"content_type": "text/html; charset=utf-8"}, FetchError, "is a web page, not a picture"),
        (b"not a picture", {}, DataFormatError, "cannot be read as a picture: it is no picture"),
        (png(64, 64)[:-30], {}, DataFormatError, "cannot be read as a picture"),
        (png(64, 64), {"length": 9000}, FetchError, r"the connection ended [\d,]+ bytes too early"),
        (b"", {"first": [(404, {})]}, FetchError, "the server answered 404"),
        (b"", {"first": [(302, {})]}, FetchError, "the server answered 302"),
    ],
)
def test_what_is_no_picture_is_one_line(archive_server: ArchiveServer, content, behavior, error, reason):
    with pytest.raises(error, match=reason) as seen:
        fetch_image(archive_server.serve("a.png", content, **behavior), HERE)
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("behavior", [{"stall_after": 10}, {"chunked": True, "stall_after": 10}])
def test_a_server_that_falls_silent_is_left(archive_server: ArchiveServer, behavior):
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"it took longer than 0\.3 s"):
        fetch_bytes(archive_server.serve("a.png", png(64, 64), **behavior), replace(HERE, seconds=0.3))
    assert time.monotonic() - start < 5


def served_once(answer) -> str:
    """A server that hands its only connection to `answer`; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with listener, listener.accept()[0] as line, contextlib.suppress(OSError):  # the client may have gone
            answer(line)

    threading.Thread(target=work, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["head", "body"])
def test_a_server_that_lets_bytes_drip_is_left(beginning):
    def drip(line: socket.socket) -> None:
        line.sendall(beginning)
        while True:
            line.sendall(b"a")
            time.sleep(0.02)

    start = time.monotonic()
    with pytest.raises(FetchError, match=r"it took longer than 0\.3 s"):
        fetch_bytes(served_once(drip), replace(HERE, seconds=0.3))
    assert time.monotonic() - start < 5


def test_a_server_that_speaks_no_tls_or_no_http_is_one_line():
    for url in (
        served_once(lambda line: line.sendall(b"hello\r\n")).replace("http:", "https:"),
        served_once(lambda line: line.sendall(b"hello\r\n")),
    ):
        with pytest.raises(FetchError, match="cannot be fetched: "):
            fetch_bytes(url, HERE)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_certificates_are_judged_by_the_name_in_the_url(tmp_path, names, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=cat.test"]
    named = ["-addext", "subjectAltName=DNS:cat.test", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *named], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    def answer(line: socket.socket) -> None:
        with server.wrap_socket(line, server_side=True) as secure:
            secure.recv(10_000)
            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    names["cat.test"] = names["dog.test"] = ["127.0.0.1"]
    monkeypatch.setattr(remote, "_tls", lambda: ssl.create_default_context(cafile=certificate))
    assert fetch_bytes(served_once(answer).replace("http://127.0.0.1", "https://cat.test"), HERE) == b"abc"
    with pytest.raises(FetchError, match="certificate verify failed"):
        fetch_bytes(served_once(answer).replace("http://127.0.0.1", "https://dog.test"), HERE)

"""Which names a server answers to: those of its machine alone where a strange page's script could use it, all where it could not."""

import httpx
import pytest

from vlm.data.hosts import host_names
from vlm.infer.server.hosts import OWN_NAMES, answered_names, check_host
from vlm.infer.server.problem import RequestError

LOCAL = answered_names("127.0.0.1", frozenset(), has_key=False)


@pytest.mark.parametrize(
    ("address", "trusted", "has_key", "names"),
    [
        ("127.0.0.1", [], False, OWN_NAMES),
        ("::1", [], False, OWN_NAMES),
        ("127.0.0.2", [], False, OWN_NAMES | {"127.0.0.2"}),
        ("127.0.0.1", ["Chat.Example.org", "[fd00::1]"], False, OWN_NAMES | {"chat.example.org", "fd00::1"}),
        ("127.0.0.1", ["*"], False, None),
        ("127.0.0.1", [], True, None),
        ("0.0.0.0", [], False, None),
        ("192.0.2.1", ["chat.example.org"], True, OWN_NAMES | {"192.0.2.1", "chat.example.org"}),
    ],
)
def test_names_are_few_without_a_key_on_this_machine_or_where_some_are_stated(address, trusted, has_key, names):
    assert answered_names(address, host_names(trusted, "--trusted-host"), has_key=has_key) == names


@pytest.mark.parametrize("header", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"])
def test_own_names_are_known_with_any_port(header):
    check_host(header, LOCAL)


@pytest.mark.parametrize(
    "header", ["a.org", "a.org:8000", "localhost.a.org", "127.0.0.1.a.org", "a.org@localhost", "localhost/a.org", "[::2]:80", "", "::1"]
)
def test_other_names_are_refused(header):
    check_host(header, None)
    with pytest.raises(RequestError, match=r"Ask it at localhost or 127\.0\.0\.1") as caught:
        check_host(header, LOCAL)
    assert (caught.value.status, caught.value.code) == (421, "unknown_host")
    assert repr(header) in str(caught.value)


def test_no_route_answers_to_a_strange_name(serve):
    server = serve(names=LOCAL)
    for path, method in (
        ("/", "GET"),
        ("/health", "GET"),
        ("/metrics", "GET"),
        ("/v1/models", "GET"),
        ("/v1/models/tiny", "GET"),
        ("/v1/chat/completions", "POST"),
    ):
        for host, known in (("a.org:8000", False), ("localhost:1", True)):
            answer = httpx.request(method, server.url + path, headers={"host": host})
            assert (answer.status_code == 421) is not known, path
        assert httpx.request(method, server.url + path, headers={"host": "a.org"}).json()["error"] == {
            "message": "This server does not answer to the host 'a.org'. Ask it at localhost or 127.0.0.1, or start the server with --trusted-host a.org.",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_host",
        }

"""Who may send requests: every form of a Host and an Origin is allowed or refused with 403, and none is an error of the
server."""

import re
import socket
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from local_server import Running, serving
from starlette.datastructures import Headers

from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import WrongHost
from localqwen.serve.http import authority
from localqwen.serve.http.app import Settings
from localqwen.serve.http.guard import Access


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    access = Access(hosts=("mybox",), origins=("https://app.example",))
    with serving(ScriptedEngine([]), Settings(access=access)) as started:
        yield started


def status(server: Running, headers: Sequence[tuple[str, bytes]], target: bytes = b"/v1/models") -> int:
    """The status of a GET with exactly these headers, byte by byte."""
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\nConnection: close\r\n" + lines + b"\r\n")
        found = re.match(rb"HTTP/1.1 (\d{3}) ", client.recv(1000))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "a.localhost:80", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:80",
     "[FE80::1]:8000", "[fe80::1%eth0]:8000", "[fe80::1%25eth0]", "[::ffff:127.0.0.1]",
     "192.168.1.5:8000", "mybox", "MyBox:8000"],
)  # fmt: skip
def test_the_names_and_addresses_of_this_machine_are_answered(server: Running, host: str) -> None:
    assert status(server, [("Host", host.encode())]) == 200
    own = [("Host", host.encode()), ("Origin", f"http://{host}".encode())]
    assert status(server, own) == 200


FOREIGN = [
    "", " ", "evil.com", "[::1].evil.com", "[::1]@evil.com", "[::1]evil.com", "[::1]:80@evil.com", "[::1]:80.evil.com",
    "[localhost]", "[127.0.0.1]", "[mybox]", "[", "]", "[]", "[::1", "::1", "::1]", "[::1]]", "[[::1]]", "[::g]",
    "[v1.fe80::a]", "[::1%]", "[::1]:", "localhost:", "localhost:80:80", "localhost:65536", "localhost:999999999999",
    "localhost:-1", "localhost:+1", "localhost:8o", "localhost:80@evil.com", "user@localhost", "user:pass@localhost",
    "localhost/", "localhost?", "localhost#", "localhost\\", "localhost,evil.com", "localhost evil.com", "localhost\t1",
    "http://localhost", "//localhost", "localhost.", "localhost.evil.com", "localhost%00.evil.com", "%6cocalhost",
    "127.0.0.1.evil.com", "127.1", "0x7f.0.0.1", "2130706433", "null", "*", "lo\xadcalhost", "localhost:\xb2",
    "l\xf6calhost", "a" * 256, "." * 300, "[" * 10_000, "a" * 32_000,
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN, ids=range(len(FOREIGN)))
def test_any_other_host_is_refused(server: Running, host: str) -> None:
    assert status(server, [("Host", host.encode("latin-1"))]) == 403


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://x:1/{}"])
@pytest.mark.parametrize("origin", FOREIGN, ids=range(len(FOREIGN)))
def test_any_other_origin_is_refused(server: Running, origin: str, form: str) -> None:
    sent = form.format(origin).encode("latin-1")[:31_000]
    assert status(server, [("Host", b"127.0.0.1"), ("Origin", sent)]) == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://app.example", 200),
        ("https://app.example/", 403),
        ("https://app.example:443", 403),
        ("http://127.0.0.1:8000", 200),
        ("HTTPS://127.0.0.1:8000", 200),  # behind a proxy with TLS
        ("http://127.0.0.1", 403),
        ("http://127.0.0.1:8001", 403),
        ("http://127.0.0.1:8000/", 403),
        ("http://127.0.0.1:8000/path", 403),
        ("http://127.0.0.1:8000#", 403),
        ("http://user@127.0.0.1:8000", 403),
        ("://127.0.0.1:8000", 403),
        ("127.0.0.1:8000", 403),
        ("http://[", 403),
        ("http://[::1", 403),
        ("http://", 403),
        ("file://", 403),
        ("null", 403),
    ],
)
def test_a_page_is_allowed_if_it_is_this_servers_or_named(server: Running, origin: str, expected: int) -> None:
    assert status(server, [("Host", b"127.0.0.1:8000"), ("Origin", origin.encode())]) == expected


def test_two_hosts_are_no_host_and_each_of_two_origins_must_be_allowed() -> None:
    access = Access(origins=("https://app.example",))
    for raw in ([(b"host", b"localhost")] * 2, [(b"host", b"localhost"), (b"host", b"evil.com")], []):
        with pytest.raises(WrongHost):
            access.check(Headers(raw=raw), "GET", "/v1/models")
    ours, theirs = (b"origin", b"https://app.example"), (b"origin", b"https://evil.com")
    access.check(Headers(raw=[(b"host", b"localhost"), ours, ours]), "GET", "/v1/models")
    with pytest.raises(WrongHost, match="evil"):
        access.check(Headers(raw=[(b"host", b"localhost"), ours, theirs]), "GET", "/v1/models")


_PIECES = some.sampled_from(
    ["[", "]", ":", "@", "/", ".", "%", "::1", "localhost", "127.0.0.1", "evil.com", "http://", "80", "65536", "null",
     "\xff", "\xb2", " ", "mybox", "https://app.example", "%25", "?", "#", "\\"]
)  # fmt: skip
_VALUES = some.lists(_PIECES, max_size=8).map(lambda pieces: "".join(pieces).encode("latin-1"))
_BYTES = some.binary(max_size=60).map(lambda data: re.sub(rb"[\x00-\x1f\x7f]", b"", data))


@settings(max_examples=300, deadline=None)
@given(host=_VALUES | _BYTES | some.just(b"localhost"), origin=some.none() | _VALUES | _BYTES)
def test_every_form_of_both_is_allowed_or_refused(server: Running, host: bytes, origin: bytes | None) -> None:
    headers = [("Host", host)] + ([("Origin", origin)] if origin is not None else [])
    assert status(server, headers) in (200, 403)


@settings(max_examples=500, deadline=None)
@given(text=some.text(max_size=40) | some.lists(_PIECES, max_size=8).map("".join))
def test_what_is_read_as_a_server_is_exactly_a_name_and_a_port(text: str) -> None:
    """So nothing of the text is ignored: put together again, it is the same text."""
    found = authority.parse(text)
    if found is not None:
        name = f"[{found.name}]" if ":" in found.name else found.name
        port = text.rpartition(":")[2]
        assert text.lower() == (name if found.port is None else f"{name}:{port}")
        assert found.port is None or int(port) == found.port <= 65535
        assert not set(found.name) & set("@/\\[]?# ")

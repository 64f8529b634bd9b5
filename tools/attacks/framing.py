"""Hostile bytes on raw sockets: headers, framing, and connections that do nothing or leave."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from attacks.client import CLOSED, SILENT, Address, Response, encoded
from attacks.questions import Question

_HELLO = b'{"messages": [{"role": "user", "content": "hi /no_think"}], "max_tokens": 4}'
_HOSTS = (
    "localhost", "[::1]", "[::1].evil.com", "[::1]@evil.com", "[localhost]", "[", "]", "[]", "[::1", "evil.com",
    "127.0.0.1.evil.com",
    "localhost:x", "localhost:-1", "localhost:99999999999", "@", "a@localhost", "localhost\t", "LOCALHOST", "127.1",
    "0x7f.1", "0", "", ":", "::1",
    "é", "\u2488", "localhost,evil.com", "localhost/../x", "x" * 9000, "1.1.1.1%25eth0", "[fe80::1%25lo]",
    "localhost#", "localhost?x", "[v1.x]",
)  # fmt: skip
_ORIGINS = (
    "http://[", "http://]", "null", "", "http://", "http://localhost", "http://[::1].evil.com", "http://evil.com",
    "http://a@localhost", "//localhost",
    "http://localhost:99999999", "http://localhost:x", "http://[::1]@x", "x" * 9000, "http://\xff", "http://[v1.x]",
    "http://ℂ", "http://[fe80::%1]",
    "file://", "chrome-extension://x", "http://127.0.0.1\\@evil.com", "javascript:1", "http://[::1]:[::1]",
    "http://localhost http://evil.com",
)  # fmt: skip


def hosts(random: Random) -> bytes:
    """Return a request with an odd Host, an odd Origin, or both."""
    lines = [f"Host: {random.choice(_HOSTS)}" if random.random() < 0.6 else "Host: localhost"]
    lines += [f"Origin: {random.choice(_ORIGINS)}"] * random.choice([0, 1, 1, 2])
    lines += random.choice([[], [], [lines[0]], ["X-Forwarded-Host: localhost"]])
    path = random.choice(["/health", "/v1/models", "/api/tags", "/metrics", "/", "/v1/models/demo"])
    method = random.choice(["GET", "GET", "OPTIONS", "HEAD"])
    return f"{method} {path} HTTP/1.1\r\n".encode() + "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def paths(random: Random) -> bytes:
    """Return a request of an odd path or method."""
    path = random.choice(
        [
            "/v1/models/" + "%F0%9F%99%82" * 80, "/v1/models/" + "x" * 300, "/v1/models/%00",
            "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%ff", "//", "/%", "/%zz",
            "/v1/models/%ED%A0%80", "*", "http://evil.com/health",
            "/v1/chat/completions/" + "x" * 9000 + "/end_thinking", "/v1/chat/completions/%0a/end_thinking",
            "/" + "a/" * 10_000, "/health?" + "a=1&" * 7_000, "/api/show/../tags", "/v1/models/hf:a/b",
            "/v1/models/~", "/v1/models/é", "/api/tags;x", "health", "",
        ]
    )  # fmt: skip
    method = random.choice(
        ["GET", "GET", "POST", "PUT", "DELETE", "CONNECT", "TRACE", "get", "X" * 300, "G\0T", "PATCH"]
    )
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def framing(random: Random) -> bytes:
    """Return a request whose framing is contradictory, cut, or no HTTP."""
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    length = b"Content-Length: %d\r\n" % len(_HELLO)
    return random.choice(
        [
            post + b"Content-Length: -1\r\n\r\n" + _HELLO, post + b"Content-Length: 9" + b"9" * 40 + b"\r\n\r\n",
            post + length + length + b"\r\n" + _HELLO,
            post + length + b"Content-Length: 3\r\n\r\n" + _HELLO,
            post + length + b"Transfer-Encoding: chunked\r\n\r\n" + _HELLO,
            post + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + _HELLO,
            post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            post + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
            post + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 50_000 + b"0\r\n\r\n",
            post + b"Content-Length: 1e3\r\n\r\n", post + b"Content-Length: \xb2\r\n\r\n",
            post + b"Expect: 100-continue\r\n" + length + b"\r\n" + _HELLO,
            post + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + _HELLO, post + length + b"\r\n" + _HELLO[:20],
            b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", b"GET /health\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", random.randbytes(4000),
            b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n", b"\r\n" * 20_000,
            b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nX\0: y\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n continued: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500,
            post + length + b"\r\n" + _HELLO + b"GET /" * 2000,
            b"POST /api/pull HTTP/1.1\r\nHost: localhost\r\n\r\n",
            post + b"Authorization: Bearer \xff\xfe\r\nX-Api-Key: \xff\r\n" + length + b"\r\n" + _HELLO,
            post + b"Content-Type: \xff/" + b"x" * 9999 + b"\r\n" + length + b"\r\n" + _HELLO,
        ]
    )  # fmt: skip


REQUESTS: Mapping[str, Callable[[Random], bytes]] = {"hosts and origins": hosts, "paths": paths, "framing": framing}


def send(address: Address, data: bytes, *, patience: float) -> Response:
    """Send bytes and return the status of the first response. A request that is not whole has no response; after
    `patience` seconds it is given up, which is no fault of the server."""
    began = time.perf_counter()
    try:
        with socket.create_connection((address.host, address.port), timeout=patience) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(data)
            answer = _first_line(client)
    except TimeoutError:
        return Response(SILENT, b"", time.perf_counter() - began)
    except OSError as error:
        return Response(CLOSED, repr(error).encode(), time.perf_counter() - began)
    words = answer.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else CLOSED
    return Response(status, answer, time.perf_counter() - began)


def _first_line(client: socket.socket) -> bytes:
    received = b""
    while b"\r\n" not in received:
        part = client.recv(4096)
        if not part:
            break
        received += part
    return received.split(b"\r\n", 1)[0]


def leave(address: Address, question: Question, random: Random) -> None:
    """Send a request and disconnect at a random moment: inside the headers, inside the body, or during the answer."""
    path, body = question
    data = encoded(body) or b""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    sent = head + data
    moment = random.choice(["headers", "body", "answer", "answer", "first bytes"])
    end = {"headers": random.randrange(len(head)), "body": random.randrange(len(head), len(sent))}.get(
        moment, len(sent)
    )
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=5) as client:
        client.sendall(sent[:end])
        if moment == "answer":
            time.sleep(random.random() * 0.2)
        elif moment == "first bytes":
            client.recv(random.choice([1, 1000]))


@contextlib.contextmanager
def idle(address: Address, count: int, begun: Sequence[bytes]) -> Iterator[None]:
    """Hold `count` connections that send nothing, or the beginning of a request, while the block runs."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            with contextlib.suppress(OSError):
                client = stack.enter_context(socket.create_connection((address.host, address.port), timeout=5))
                client.sendall(begun[number % len(begun)])
        yield

"""Connections without a request: thousands of them take nothing from others, and none lasts for ever."""

import contextlib
import json
import resource
import socket
from collections.abc import Iterator

import pytest
from local_server import Running, eventually, serving, talkative

from localqwen.engines.scripted import ScriptedEngine
from localqwen.machine import posix
from localqwen.serve.http import connections
from localqwen.serve.http.app import Settings
from localqwen.serve.http.connections import MOST_IDLE
from localqwen.serve.http.guard import Access

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def chat(**more: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "hi /no_think"}], **more}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def answers(client: socket.socket, request: bytes = GET) -> bool:
    """Whether the answer to a request comes; of one that is streamed, its beginning."""
    client.sendall(request)
    return is_answered(client)


def is_answered(client: socket.socket) -> bool:
    with client.makefile("rb") as reader:
        status = reader.readline()
        headers = [line.lower() for line in iter(reader.readline, b"\r\n")]
        reader.read(sum(int(line.partition(b":")[2]) for line in headers if line.startswith(b"content-length:")))
    return b" 200 " in status


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    finally:
        client.settimeout(10)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that keeps three idle connections."""
    monkeypatch.setattr(connections, "MOST_IDLE", 3)
    with serving(ScriptedEngine(["fine"] * 100)) as server:
        yield server


@contextlib.contextmanager
def allowed_files(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    posix.allow_open_files(count)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /health HTTP/1.1\r\nX: "], ids=["nothing", "a byte", "half"])
def test_thousands_of_idle_connections_cost_a_good_client_no_answer(sent: bytes) -> None:
    """Neither one that connects anew for each request, nor one whose answer streams meanwhile."""
    with allowed_files(6000), serving(talkative(words=3000, seconds=0.002)) as server, contextlib.ExitStack() as held:
        streaming = held.enter_context(connect(server))
        assert answers(streaming, chat(stream=True, max_tokens=3000))
        for number in range(3000):
            idle = held.enter_context(connect(server))
            with contextlib.suppress(ConnectionError):  # it may be closed already
                idle.sendall(sent)
            if number % 100 == 0:
                with connect(server) as good:
                    assert answers(good)
        with connect(server) as good:
            assert answers(good, chat(max_tokens=2))
        assert not is_closed(streaming)


def test_the_longest_idle_connection_is_closed_first(few: Running) -> None:
    with contextlib.ExitStack() as held:
        first, second, third, fourth = (held.enter_context(connect(few)) for _ in range(4))
        assert eventually(lambda: is_closed(first))
        assert not any(is_closed(each) for each in (second, third, fourth))
        assert answers(second)  # it is idle anew, and the third one for the longest time now
        fifth = held.enter_context(connect(few))
        assert eventually(lambda: is_closed(third))
        assert all(answers(each) for each in (fourth, second, fifth))


def test_headers_that_dribble_in_do_not_make_a_connection_younger(few: Running) -> None:
    with contextlib.ExitStack() as held:
        slow, second, third = (held.enter_context(connect(few)) for _ in range(3))
        slow.sendall(GET[:-1])
        assert answers(third)
        held.enter_context(connect(few))
        assert eventually(lambda: is_closed(slow))
        assert answers(second)


def test_a_connection_with_a_running_request_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_IDLE", 3)
    with serving(talkative()) as server, contextlib.ExitStack() as held:
        streaming = held.enter_context(connect(server))
        assert answers(streaming, chat(stream=True))
        unsent = held.enter_context(connect(server))
        unsent.sendall(chat(max_tokens=2)[:-5])  # its headers are complete, its body is not
        for _ in range(20):
            assert answers(held.enter_context(connect(server)))
        assert not is_closed(streaming)
        unsent.sendall(chat(max_tokens=2)[-5:])
        assert is_answered(unsent)


def test_a_client_that_reads_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD", 0.1)
    engine = talkative(words=100_000, seconds=0)
    with serving(engine) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(chat(stream=True, max_tokens=100_000))
        assert eventually(lambda: bool(engine.runs) and engine.runs[0].finished, 30)
        assert engine.runs[0].generated < 50_000


def test_what_is_no_http_behind_a_response_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """The rest of a body that was refused for its size."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(ScriptedEngine([]), Settings(access=Access(largest_body=100))) as server, connect(server) as client:
        client.sendall(head + b"80\r\n" + b" " * 0x80 + b"\r\n")
        assert b" 413 " in client.recv(1000)
        client.sendall(b"no length\r\n")
        assert eventually(lambda: is_closed(client))
    assert not [record for record in caplog.records if record.exc_info]


def test_a_process_that_may_open_few_files_keeps_fewer_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((256, 64), (1024, 256), (1 << 20, MOST_IDLE), (None, MOST_IDLE)):
        monkeypatch.setattr(posix, "open_files_limit", lambda files=files: files)
        assert connections.most_idle() == most

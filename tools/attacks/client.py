"""One HTTP request and what came of it. Knows nothing of models."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

#: Statuses that HTTP does not have: the server closed the connection without a response, or did not answer in time.
CLOSED, SILENT = 0, -1
_GRAMMAR = b"the answer's grammar failed"
_NAMES = {CLOSED: "closed", SILENT: "silent"}


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Response:
    """What came of a request. `broken`: the body ended before its end."""

    status: int
    body: bytes = b""
    seconds: float = 0.0
    broken: bool = False

    @property
    def excerpt(self) -> str:
        """The beginning of the body, in one line."""
        return " ".join(self.body[:300].decode(errors="replace").split())


@dataclass(frozen=True)
class Seen:
    """A response judged: `problem` is "" if it is one that was expected."""

    status: int
    problem: str = ""


def ask(
    address: Address, path: str, body: bytes | dict[str, Any] | None = None, *, patience: float, method: str = ""
) -> Response:
    """Send one request on a connection of its own: a GET without a body, else a POST. Never raise for what the server
    does: it may close, break off, or be silent for `patience` seconds."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(address.host, address.port, timeout=patience)
    try:
        _send(connection, method or ("GET" if body is None else "POST"), path, encoded(body))
        return _received(connection, began)
    except TimeoutError:
        return Response(SILENT, seconds=time.perf_counter() - began)
    except (OSError, http.client.HTTPException) as error:
        return Response(CLOSED, repr(error).encode(), time.perf_counter() - began)
    finally:
        connection.close()


def encoded(body: bytes | dict[str, Any] | None) -> bytes | None:
    """Return a body as it is sent."""
    return json.dumps(body).encode() if isinstance(body, dict) else body


def _send(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> None:
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
    except (BrokenPipeError, ConnectionResetError):
        return  # a server may refuse a body before it has read it; its response is there to be read


def _received(connection: http.client.HTTPConnection, began: float) -> Response:
    response = connection.getresponse()
    try:
        body, broken = response.read(), False
    except http.client.IncompleteRead as error:
        body, broken = error.partial, True
    except ConnectionResetError:
        body, broken = b"", True
    return Response(response.status, body, time.perf_counter() - began, broken)


def expect(response: Response, allowed: Collection[int], *, naming: str = "") -> Seen:
    """Judge a response: its status is one of `allowed`, its body is whole, a stream of events ends with its last event,
    and an error of the server (500 and above, or inside a stream) is JSON that names the model `naming`."""
    return Seen(response.status, _problem(response, allowed, naming))


def _problem(response: Response, allowed: Collection[int], naming: str) -> str:
    if response.status not in allowed:
        status = _NAMES.get(response.status, str(response.status))
        return f"{status} after {response.seconds:.1f} s: {response.excerpt}"
    if response.broken:
        return f"the response broke off: {response.excerpt}"
    if response.status == 200 and response.body.startswith(b"data: "):
        return _problem_of_stream(response.body, naming)
    if response.status >= 500 and naming and not _names(response.body, naming):
        return f"the error does not name {naming}: {response.excerpt}"
    return ""


def _problem_of_stream(body: bytes, naming: str) -> str:
    """Return what is wrong with the events of OpenAI's API: the last is `[DONE]`, or an error that names the model. A
    model whose numbers have become NaN writes what its grammar forbids; its process lives, so it need not be named."""
    last = body.strip().rpartition(b"\n")[2].removeprefix(b"data: ")
    error = next((line for line in body.splitlines() if line.startswith(b'data: {"error"')), b"")
    if naming and error and _GRAMMAR not in error and not _names(error.removeprefix(b"data: "), naming):
        return f"the error of the stream does not name {naming}: {error[:300].decode(errors='replace')}"
    return "" if last == b"[DONE]" or error else f"the stream ends with {last[-300:].decode(errors='replace')}"


def _names(body: bytes, model: str) -> bool:
    try:
        return model in json.dumps(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return False

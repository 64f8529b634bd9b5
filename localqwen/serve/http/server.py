"""A server that listens: the port, the signals, clients that are slow on purpose. uvicorn speaks HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from localqwen.errors import EngineError, UsageError
from localqwen.machine import posix
from localqwen.serve.http.app import Service, application

#: Seconds: for a request's headers, and that an idle connection is kept.
HEADERS, KEEP_ALIVE = 10.0, 75
#: Bytes of headers; connections at once.
LARGEST_HEADERS, MOST_CONNECTIONS = 32 << 10, 1024
#: Connections that wait to be taken. asyncio tries so many at a time, and where the process has no file left for one,
#: it writes a trace for each.
BACKLOG = 128
#: Files that the process has open beside its connections, with room to spare.
FILES = 256
#: Seconds that running answers get after SIGTERM or Ctrl-C, and readers to take the end after a second one.
GRACE, LAST_WORDS = 30.0, 0.5


class PatientProtocol(H11Protocol):
    """uvicorn waits for ever for the headers of a connection; a client that sends them byte by byte would keep it."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """From the first byte of a request's headers to their last."""
        between = self.cycle is None or self.cycle.response_complete
        if not between:
            self._forget()
        elif self._due is None and self.timeout_keep_alive_task is None:
            self._due = self.loop.call_later(HEADERS, self.transport.close)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class Listening(uvicorn.Server):
    """`started` is called when requests are taken. SIGTERM and the first Ctrl-C let running answers end, for `grace`
    seconds; a second signal does not."""

    def __init__(self, service: Service, *, started: Callable[[], None] = lambda: None, grace: float = GRACE) -> None:
        super().__init__(_config(service, grace))
        self._service = service
        self._say_started = started
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self.died = False
        service.worker.on_death = self._worker_died

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.worker.stop(self._grace)
        await super().shutdown(sockets)

    def _worker_died(self) -> None:
        self.died = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: an orderly end is exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit and self._loop is not None:
            self._service.worker.stop(0)  # every answer ends with an error, which its client still gets
            self._loop.call_soon_threadsafe(self._loop.call_later, LAST_WORDS, self._abort)
        self.should_exit = True

    def _abort(self) -> None:
        """Not uvicorn's `force_exit`: that leaves the application running, and its end is a trace on the screen."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _config(service: Service, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        application(service),
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        h11_max_incomplete_event_size=LARGEST_HEADERS,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=int(grace) + 1,
    )


def bind(host: str, port: int) -> socket.socket:
    """Raises UsageError where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is in use", f"use another one: --port {port + 1}") from exc
        hint = (
            "ports below 1024 are the system's: --port 8000" if exc.errno == errno.EACCES else "check --host and --port"
        )
        raise UsageError(f"cannot listen on {host} port {port}: {exc.strerror}", hint) from exc
    return listener


def url(listener: socket.socket) -> str:
    name: Any = listener.getsockname()
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def run(server: Listening, listener: socket.socket) -> None:
    """Until a signal comes. Raises EngineError where the worker died."""
    posix.allow_open_files(MOST_CONNECTIONS + FILES)
    server.run(sockets=[listener])
    if server.died:
        raise EngineError("the engine's thread died", "the trace above says where; please report it")

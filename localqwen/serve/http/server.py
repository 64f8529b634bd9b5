"""A listening server: the port, the signals, and clients that are slow on purpose. uvicorn implements HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from localqwen.errors import LocalqwenError, UsageError
from localqwen.machine import posix
from localqwen.model_process import launch
from localqwen.serve.http.app import Service, application
from localqwen.serve.http.connections import MOST_IDLE, PatientProtocol

#: Seconds for which an idle connection stays open.
KEEP_ALIVE = 75
#: The most bytes of headers, and the most connections at the same time: 1,024 with a request, and the idle ones.
LARGEST_HEADERS, MOST_CONNECTIONS = 32 << 10, 1024 + MOST_IDLE
#: Connections that wait to be accepted. asyncio accepts this many at a time, and prints a traceback for each one for
#: which the process has no file left.
BACKLOG = 1024
#: The most files that the process opens beside its connections, and those of connections that are being accepted and
#: closed.
FILES = 256 + 2 * BACKLOG
#: Seconds for running answers after SIGTERM or Ctrl-C, and for clients to read the end after a second signal.
GRACE, LAST_WORDS = 30.0, 0.5


class Listening(uvicorn.Server):
    """A server that loads its models, then accepts requests and calls `started`. SIGTERM and the first Ctrl-C end
    loading, and let running answers end within `grace` seconds; a second signal stops them at once.

    `problem` is the error that prevented loading; `interrupted` says that Ctrl-C did."""

    def __init__(self, service: Service, *, started: Callable[[], None] = lambda: None, grace: float = GRACE) -> None:
        super().__init__(_config(service, grace))
        self._service = service
        self._say_started = started
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.problem: LocalqwenError | None = None
        self.interrupted = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; no process of a model outlives this."""
        try:
            await super().serve(sockets)
        finally:
            await self._service.models.stop(0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the models and open the port, then call `started`."""
        self._loop = asyncio.get_running_loop()
        self._loading = asyncio.ensure_future(self._service.load())
        try:
            await self._loading
        except LocalqwenError as error:
            self.problem, self.should_exit = error, True
        except asyncio.CancelledError:
            self.should_exit = True
        if not self.should_exit:
            await super().startup(sockets)
            self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers end, then close the connections."""
        self._stopping = asyncio.ensure_future(self._service.models.stop(self._grace))
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but do not raise them again at the end: a clean shutdown exits with 0."""
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
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_loading if not self.should_exit else self._stop_at_once)
        if self._loading is not None and not self._loading.done():
            self.interrupted = number == signal.SIGINT
        self.should_exit = True

    def _stop_loading(self) -> None:
        if self._loading is not None:
            self._loading.cancel()

    def _stop_at_once(self) -> None:
        """End every answer with an error, which is still sent to its client, and every process."""
        self._stopping = asyncio.ensure_future(self._service.models.stop(0))
        asyncio.get_running_loop().call_later(LAST_WORDS, self._abort)

    def _abort(self) -> None:
        """Close all connections. uvicorn's `force_exit` would leave the application running, and print a traceback at
        its end."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _config(service: Service, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        application(service),
        http=PatientProtocol,
        ws="none",
        lifespan="off",
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
    """Return a listening socket. Raise UsageError if the address cannot be used."""
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
            "only root may use ports below 1024: --port 8000"
            if exc.errno == errno.EACCES
            else "check --host and --port"
        )
        raise UsageError(f"cannot listen on {host} port {port}: {exc.strerror}", hint) from exc
    return listener


def url(listener: socket.socket) -> str:
    """Return the address of a listening socket, as in `http://127.0.0.1:8000`."""
    name: Any = listener.getsockname()
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def run(server: Listening, listener: socket.socket) -> None:
    """Load the models and serve until a signal comes. Raise the LocalqwenError that prevented loading, and
    KeyboardInterrupt where Ctrl-C ended it."""
    posix.allow_open_files(MOST_CONNECTIONS + FILES)
    sys.setswitchinterval(launch.SWITCH_INTERVAL)
    server.run(sockets=[listener])
    if server.problem is not None:
        raise server.problem
    if server.interrupted:
        raise KeyboardInterrupt

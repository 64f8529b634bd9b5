"""One HTTP connection: how long a client may take, and how many may be idle. uvicorn implements HTTP."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from localqwen.machine import posix

#: Seconds in which the headers of a request must arrive, and in which a client must read some of what was sent to it.
HEADERS, UNREAD = 10.0, 120.0
#: The most connections without a running request. One more closes the one that is idle for the longest time, so that
#: clients that hold thousands of them take nothing from others.
MOST_IDLE = 512
#: Seconds before surplus idle connections are closed.
READ_FIRST = 0.05


class Idle:
    """The connections of one server without a running request: fresh ones, those whose headers are on their way, and
    those between two requests, the longest idle first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._closing: asyncio.TimerHandle | None = None
        self._connections: dict[PatientProtocol, None] = {}

    def add(self, connection: PatientProtocol) -> None:
        """Take note that a connection is idle from now on. If they are too many, close the longest idle ones, but not
        before what has arrived is read: of a thousand new connections, most are idle for that moment only."""
        self.remove(connection)
        self._connections[connection] = None
        if len(self._connections) > self._most and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(READ_FIRST, self._close_surplus)

    def _close_surplus(self) -> None:
        self._closing = None
        while len(self._connections) > self._most:
            oldest = next(iter(self._connections))
            self.remove(oldest)
            oldest.drop()

    def remove(self, connection: PatientProtocol) -> None:
        """Take note that a connection has a request, or is closed."""
        self._connections.pop(connection, None)


_of_server: WeakKeyDictionary[ServerState, Idle] = WeakKeyDictionary()


def most_idle() -> int:
    """Return MOST_IDLE, or less if the process may open only few files: others need some too."""
    files = posix.open_files_limit()
    return MOST_IDLE if files is None else min(MOST_IDLE, files // 4)


class PatientProtocol(H11Protocol):
    """An HTTP connection whose headers must arrive within HEADERS seconds, and whose client must read. uvicorn alone
    waits for ever, so that a client that sends byte by byte, or reads nothing, would keep the connection."""

    _due: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _idle: Idle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._idle = _of_server.get(self.server_state) or _of_server.setdefault(self.server_state, Idle(most_idle()))
        self._idle.add(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle the data, and start or stop the clock."""
        super().data_received(data)
        if not self._between_requests:
            self._idle.remove(self)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to read the last response."""
        super().on_response_complete()
        if self._between_requests:
            self._idle.add(self)
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._wait_for_reader()

    def send_400_response(self, msg: str) -> None:
        """Tell the client that what it sent is no HTTP. After a response has begun, h11 allows no other: the connection
        is closed."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.drop()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._stop_waiting()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, whether the client has read everything or not."""
        super().timeout_keep_alive_handler()
        self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._forget()
        self._stop_waiting()
        self._idle.remove(self)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection now; what the client has not read is lost."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Run the clock from the first byte of a request's headers to the last."""
        if not self._between_requests:
            self._forget()
        elif self._due is None and self.timeout_keep_alive_task is None:
            self._due = self.loop.call_later(HEADERS, self.drop)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _wait_for_reader(self, unread: float = float("inf")) -> None:
        """Close the connection if as many bytes are unread as UNREAD seconds ago; else look again after that time."""
        self._stop_waiting()
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(UNREAD, self._wait_for_reader, left)

    def _stop_waiting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

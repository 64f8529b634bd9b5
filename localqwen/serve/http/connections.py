"""One HTTP connection: how long a client may take. uvicorn implements HTTP."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds in which the headers of a request must arrive.
HEADERS = 10.0


class PatientProtocol(H11Protocol):
    """An HTTP connection whose headers must arrive within HEADERS seconds. uvicorn alone waits for ever, so that a
    client that sends them byte by byte would keep the connection."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle the data, and start or stop the clock."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the clock from the first byte of a request's headers to the last."""
        between = self.cycle is None or self.cycle.response_complete
        if not between:
            self._forget()
        elif self._due is None and self.timeout_keep_alive_task is None:
            self._due = self.loop.call_later(HEADERS, self.transport.close)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

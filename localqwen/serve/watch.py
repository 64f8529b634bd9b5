"""The clocks of one model's process: each stage of a request has its time, and a process that works answers a ping.

A stage that takes too long is most often interrupted by the child itself (a template's loop). What cannot be
interrupted (one call of a library, a process that was stopped) shows here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Seconds between two pings.
_BETWEEN = 2.0
#: Seconds that a stage, or the answer to a ping, may take beyond the limit: what the child itself interrupts is not an
#: end of the child.
_MARGIN = 2.0


class Watch:
    """Watches one process, which has `seconds` for each stage, and for the answer to a ping. `late` is called with
    the request whose stage took too long ("" for none) and what to say of it; `ping` sends a ping."""

    def __init__(self, seconds: float, ping: Callable[[int], None], late: Callable[[str, str], None]) -> None:
        self._seconds = seconds
        self._ping, self._late = ping, late
        self._loop = asyncio.get_running_loop()
        self._stages: dict[str, asyncio.TimerHandle] = {}
        self._next_ping: asyncio.TimerHandle | None = None
        self._sent = 0
        self._answered_at = self._loop.time()

    def stage(self, number: str, name: str) -> None:
        """Start the clock of a stage, "" ends that of the last one."""
        self.forget(number)
        if name:
            self._stages[number] = self._loop.call_later(self._seconds + _MARGIN, self._too_long, number, name)

    def forget(self, number: str) -> None:
        """Stop the clock of a request."""
        clock = self._stages.pop(number, None)
        if clock is not None:
            clock.cancel()

    def _too_long(self, number: str, name: str) -> None:
        self._late(number, f"was ended because {_STAGES.get(name, name)} took longer than {self._seconds:g} s")

    def work(self) -> None:
        """Ping from now on, if it does not already."""
        if self._next_ping is None:
            self._answered_at = self._loop.time()
            self._send()

    def _send(self) -> None:
        silent = self._loop.time() - self._answered_at
        if silent > self._seconds + _MARGIN:
            self._late("", f"was ended because it did not answer for {silent:.0f} s")
            return
        self._sent += 1
        self._ping(self._sent)
        self._next_ping = self._loop.call_later(_BETWEEN, self._send)

    def pong(self) -> None:
        """Take note of an answer."""
        self._answered_at = self._loop.time()

    def rest(self) -> None:
        """Ping no more until there is work again."""
        if self._next_ping is not None:
            self._next_ping.cancel()
            self._next_ping = None

    def close(self) -> None:
        """Stop all clocks."""
        self.rest()
        for number in list(self._stages):
            self.forget(number)


_STAGES = {
    "request": "reading the request",
    "grammar": "compiling the grammar",
    "template": "rendering the template",
    "text": "tokenizing the prompt",
}

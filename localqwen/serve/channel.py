"""The way of one request between the event loop, which parsed it, and the worker's thread, which answers it.

Events go into the loop in batches: one wake-up per step, one mailbox per request. A mailbox grows with its answer: a
slow reader costs memory, and never blocks the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localqwen.chat.messages import Event
from localqwen.chat.scheduler import Ticket
from localqwen.errors import LocalqwenError
from localqwen.serve.api import ParsedRequest


@dataclass(frozen=True)
class JobEvent:
    """An event of answer `index`, or the error that ends the request."""

    what: Event | LocalqwenError
    index: int = 0


@dataclass(eq=False)
class Job(Ticket):
    """A request for answers. `model` is the resolved name."""

    parsed: ParsedRequest
    model: str


#: Takes the events of one step, of all requests; called in the worker's thread.
Post = Callable[[Sequence[tuple[Job, JobEvent]]], None]


class Mailbox:
    """The events of one request that were not taken yet."""

    def __init__(self) -> None:
        self._items: list[JobEvent] = []
        self._ready = asyncio.Event()

    def put(self, event: JobEvent) -> None:
        """Add an event and wake the reader."""
        self._items.append(event)
        self._ready.set()

    async def take(self) -> list[JobEvent]:
        """Return all events that have come; wait for the first."""
        await self._ready.wait()
        self._ready.clear()
        items, self._items = self._items, []
        return items


class Channel:
    """The mailboxes of all requests. Create it in the event loop; `post` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._boxes: dict[Job, Mailbox] = {}

    def open(self, job: Job) -> Mailbox:
        """Return the mailbox of a request."""
        return self._boxes.setdefault(job, Mailbox())

    def close(self, job: Job) -> None:
        """Remove the mailbox of a request. Events that come for it later are dropped."""
        self._boxes.pop(job, None)

    @property
    def open_boxes(self) -> int:
        """Return how many requests have a mailbox."""
        return len(self._boxes)

    def post(self, batch: Sequence[tuple[Job, JobEvent]]) -> None:
        """Bring events into the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody reads
            self._loop.call_soon_threadsafe(self._sort, batch)

    def _sort(self, batch: Sequence[tuple[Job, JobEvent]]) -> None:
        for job, event in batch:
            box = self._boxes.get(job)
            if box is not None:
                box.put(event)

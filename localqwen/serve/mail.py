"""From the worker's thread into the event loop: one wake-up per step, one box per request.

A box is as large as its answer: a slow reader costs memory, and never holds the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from localqwen.serve.job import Delivery, Job


class Mailbox:
    """What has come for one request and was not taken yet."""

    def __init__(self) -> None:
        self._items: list[Delivery] = []
        self._ready = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        self._items.append(delivery)
        self._ready.set()

    async def take(self) -> list[Delivery]:
        """Everything that is there; waits for the first."""
        await self._ready.wait()
        self._ready.clear()
        items, self._items = self._items, []
        return items


class Mail:
    """Made in the event loop; `post` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._boxes: dict[Job, Mailbox] = {}

    def open(self, job: Job) -> Mailbox:
        return self._boxes.setdefault(job, Mailbox())

    def close(self, job: Job) -> None:
        self._boxes.pop(job, None)

    @property
    def open_boxes(self) -> int:
        return len(self._boxes)

    def post(self, batch: Sequence[tuple[Job, Delivery]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is there to read
            self._loop.call_soon_threadsafe(self._sort, batch)

    def _sort(self, batch: Sequence[tuple[Job, Delivery]]) -> None:
        for job, delivery in batch:
            box = self._boxes.get(job)
            if box is not None:
                box.put(delivery)

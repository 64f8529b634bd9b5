"""One answer, read event by event: what `ChatModel.stream` of a local model returns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import Any

from localqwen.chat.engine_thread import EngineThread, Item, Outlet
from localqwen.chat.messages import Event, Finished, Request
from localqwen.errors import UsageError


class AnswerStream(Generator[Event, None, None]):
    """A generator that computes as far as it is read, from any thread. It begins with its first `next`; closing it, or
    forgetting it half read, cancels the answer. `owner` lives as long as the stream does."""

    def __init__(self, thread: EngineThread, request: Request, owner: object) -> None:
        self._thread = thread
        self._owner = owner
        self._outlet = Outlet(request=request)
        self._items: deque[Item] = deque()
        self._reading = threading.Lock()
        self._begun = self._over = False

    def __next__(self) -> Event:
        """Return the next event. Raise EngineError where the model is closed, and what ended the answer early."""
        if self._over:
            raise StopIteration
        if not self._reading.acquire(blocking=False):
            raise UsageError("two threads read one answer", "give each thread a stream of its own")
        try:
            item = self._next()
        except BaseException:  # of a closed model, or Ctrl-C while it waited: that ends the answer, as in any generator
            self._cancel(patient=False)
            raise
        finally:
            self._reading.release()
        self._over = self._over or item is None or isinstance(item, Finished | BaseException)
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _next(self) -> Item:
        if self._items:
            self._thread.check_open()
        else:
            self._begin()
            self._items.extend(self._thread.take(self._outlet))
        return self._items.popleft()

    def _begin(self) -> None:
        if not self._begun:
            self._thread.begin(self._outlet)
            self._begun = True

    def send(self, value: None, /) -> Event:
        """Return the next event, as `next` does."""
        return next(self)

    def end_thinking(self) -> None:
        """End the thinking of this answer. Raise EngineError where the model is closed."""
        self._thread.call(lambda scheduler: scheduler.end_thinking(self._outlet.id))

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Event:
        """Cancel the answer and raise the exception."""
        self._cancel(patient=True)
        return super().throw(typ, val, tb)

    def close(self) -> None:
        """Cancel the answer. Its run is free when this returns."""
        self._cancel(patient=True)

    def _cancel(self, *, patient: bool) -> None:
        begun, self._over = self._begun and not self._over, True
        if begun:
            self._thread.cancel(self._outlet, patient=patient)

    def __del__(self) -> None:
        self._cancel(patient=False)

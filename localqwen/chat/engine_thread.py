"""The thread of one engine: it opens the model, steps it while somebody reads an answer, and closes it.

An engine is created, stepped and closed in one thread, but answers are read in any. So a reader that has nothing left
to read says so, the thread computes until every waiting reader has an event, and then sleeps: an answer goes no further
than its readers, and no computing is done for an answer that nobody reads.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from localqwen.chat.messages import Event, PrefillProgress, Request, Started
from localqwen.chat.model_info import LoadedModel
from localqwen.chat.reply import Reply
from localqwen.chat.scheduler import Scheduler, Ticket
from localqwen.errors import Busy, EngineError, LocalqwenError

R = TypeVar("R")
#: What a reader receives: an event, or what it shall raise; None ends an answer that was cancelled.
Item = Event | BaseException | None
#: Called in the engine's thread, with the error that stands against it where the model was closed.
_Message = Callable[[LocalqwenError | None], None]

#: Seconds that the interpreter's exit waits for an engine's step to end, and for a model that is still opened.
_LAST_STEP, _OPENING = 10.0, 1.0
#: Seconds after which whoever waits for the thread looks for Ctrl-C, and whether the thread still runs.
_LOOK = 0.5


@dataclass(eq=False)
class Outlet(Ticket):
    """What has come of one answer for its reader, a batch per step. `given` counts the batches, `taken` those that the
    reader has."""

    request: Request
    batches: queue.SimpleQueue[Sequence[Item]] = field(default_factory=queue.SimpleQueue)
    given: int = 0
    taken: int = 0


class EngineThread:
    """Runs one engine. `load` is called in the thread; the constructor waits for it and raises what it raises.
    `queue_limit` is how many answers may wait for a free run. An engine that is not `owned` is closed by `close` alone,
    not by what ends the thread otherwise."""

    def __init__(self, name: str, load: Callable[[], LoadedModel], *, queue_limit: int, owned: bool) -> None:
        self._name = name
        self._owned = owned
        self._queue_limit = queue_limit
        self._process = os.getpid()
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a finalizer may run in the middle of `_post`, and call `stop`
        self._closed = False
        self._readers: set[Outlet] = set()  # whose readers wait
        self._outgoing: dict[Outlet, list[Item]] = {}
        self._opening: Future[LoadedModel] = Future()
        self._thread = threading.Thread(target=self._live, args=(load,), name="localqwen-engine", daemon=True)
        self.loaded = self._load()
        self._warnings = self.loaded.engine.warnings  # the first answer says them

    def _load(self) -> LoadedModel:
        _running.add(self)
        try:
            self._thread.start()
            while not self._opening.done():
                wait([self._opening], timeout=_LOOK)
        except BaseException:  # Ctrl-C: what is half opened is closed by its thread
            self.stop()
            raise
        return self._opening.result()

    # From any thread.

    def check_open(self) -> None:
        """Raise EngineError where the model is closed, or belongs to the process that this one was forked from."""
        if os.getpid() != self._process:
            raise EngineError(
                f"{self._name} was loaded before this process was forked", "load the model in the process that uses it"
            )
        if self._closed:
            raise self._refusal()

    def _refusal(self) -> LocalqwenError:
        return EngineError(f"{self._name} is closed", "load it again with localqwen.load")

    def _post(self, message: _Message) -> None:
        with self._lock:
            self.check_open()
            self._inbox.put(message)

    def call(self, work: Callable[[Scheduler[Outlet]], R]) -> R:
        """Return what `work` returns, called in the engine's thread between two steps. Raise what it raises, and
        EngineError where the model is closed."""
        future: Future[R] = Future()
        self._post(partial(self._carry_out, work, future))
        return future.result()

    def begin(self, outlet: Outlet) -> None:
        """Let an answer wait for its turn. Raise EngineError where the model is closed."""
        self._post(partial(self._begin, outlet))

    def take(self, outlet: Outlet) -> Sequence[Item]:
        """Return the next batch of an answer; wait until there is one. Raise EngineError where the model is closed."""
        if outlet.batches.empty():
            self._post(partial(self._want, outlet, outlet.taken))
        else:
            self.check_open()
        batch = outlet.batches.get()
        outlet.taken += 1
        return batch

    def cancel(self, outlet: Outlet, *, patient: bool) -> None:
        """End an answer: its run is free, and a reader that waits is told. `patient` waits until this is done."""
        if not self.alive:
            return
        done: Future[None] = Future()
        self._inbox.put(partial(self._cancel, outlet, done))
        while patient and self.alive and not done.done() and threading.current_thread() is not self._thread:
            wait([done], timeout=_LOOK)

    @property
    def alive(self) -> bool:
        """Return whether the thread runs, in this process."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread, without waiting for it."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            self._inbox.put(lambda _: None)

    def close(self) -> None:
        """Close the model, and wait until its memory is free."""
        self._owned = True
        self.stop()
        self.join()

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds until the thread has ended."""
        if self.alive and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def end(self) -> None:
        """End the thread because the interpreter ends."""
        self.stop()
        self.join(_LAST_STEP if self._opening.done() else _OPENING)

    # In the engine's thread.

    def _live(self, load: Callable[[], LoadedModel]) -> None:
        try:
            loaded = load()
        except BaseException as error:  # whoever opens the model raises it
            self._closed = True
            self._opening.set_exception(error)
            return
        self._scheduler: Scheduler[Outlet] = Scheduler(loaded, self._emit, progress=True, prefill_ahead=False)
        self._opening.set_result(loaded)
        try:
            while self._receive():
                self._compute()
        finally:
            self._end()

    def _receive(self) -> bool:
        """Handle what is in the inbox; sleep while no reader waits. Return whether the model stays open."""
        while not self._closed and (not self._readers or not self._inbox.empty()):
            self._inbox.get()(None)
            self._flush()
        return not self._closed

    def _compute(self) -> None:
        """Start what may start, and compute a step unless every waiting reader has something by now."""
        try:
            self._scheduler.admit()
            if self._readers.difference(self._outgoing):
                self._scheduler.step()
        except BaseException as error:  # the engine's or a bug's: whoever reads raises it
            self._fail(error)
        self._flush()

    def _fail(self, error: BaseException) -> None:
        tickets = self._scheduler.tickets
        for outlet in tickets:
            self._give(outlet, error)
        self._flush()  # a broken engine may fail once more
        for outlet in tickets:
            self._scheduler.cancel(outlet)

    def _end(self) -> None:
        """Tell everybody who still waits that the model is closed, and close the engine."""
        with self._lock:
            self._closed = True
        while not self._inbox.empty():
            self._inbox.get()(self._refusal())
        self._fail(self._refusal())
        if self._owned:
            self._scheduler.close()

    def _emit(self, outlet: Outlet, index: int, what: Event | LocalqwenError) -> None:
        if isinstance(what, Started) and self._warnings:
            what, self._warnings = replace(what, warnings=self._warnings + what.warnings), ()
        # A reader that is behind has something to show: how far the prompt is would only pile up.
        if not isinstance(what, PrefillProgress) or outlet.given == outlet.taken:
            self._give(outlet, what)

    def _give(self, outlet: Outlet, item: Item) -> None:
        self._outgoing.setdefault(outlet, []).append(item)

    def _flush(self) -> None:
        if self._outgoing:
            batches, self._outgoing = self._outgoing, {}
            for outlet, items in batches.items():
                self._readers.discard(outlet)
                outlet.given += 1
                outlet.batches.put(items)

    def _begin(self, outlet: Outlet, refusal: LocalqwenError | None) -> None:
        try:
            if refusal is not None:
                raise refusal
            self._check_queue()
            self._scheduler.add(outlet, [Reply(outlet.request, self.loaded.info)])
        except BaseException as error:  # whoever reads the answer raises it
            self._give(outlet, error)

    def _check_queue(self) -> None:
        running, waiting = self._scheduler.engine.max_runs, self._queue_limit
        if len(self._scheduler.tickets) >= running + waiting:
            raise Busy(
                f"{self._name} answers {running} at once and {waiting} wait already",
                f"try again later, or load it with parallel={2 * running} to answer more at once",
            )

    def _want(self, outlet: Outlet, taken: int, refusal: LocalqwenError | None) -> None:
        """The reader of an answer waits, unless something has been given to it meanwhile."""
        if outlet.given == taken:
            if refusal is None:
                self._readers.add(outlet)
            else:
                self._give(outlet, refusal)

    def _cancel(self, outlet: Outlet, done: Future[None], refusal: LocalqwenError | None) -> None:
        self._scheduler.cancel(outlet)
        self._give(outlet, None)
        done.set_result(None)

    def _carry_out(
        self, work: Callable[[Scheduler[Outlet]], R], future: Future[R], refusal: LocalqwenError | None
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if refusal is not None:
                raise refusal
            future.set_result(work(self._scheduler))
        except BaseException as error:  # whoever called raises it
            future.set_exception(error)


_running: weakref.WeakSet[EngineThread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that computes while the interpreter ends would crash it."""
    for thread in list(_running):
        thread.end()

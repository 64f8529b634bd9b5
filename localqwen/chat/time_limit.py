"""A time limit for Python code that nobody here wrote: it is interrupted in whatever thread it runs.

One daemon thread watches all calls. It raises an exception in the thread of a call that is late (CPython's
`PyThreadState_SetAsyncExc`), which arrives between two bytecodes: a single long call into C cannot be interrupted, so
whoever runs foreign code must keep those short. Knows nothing of templates.
"""

from __future__ import annotations

import _weakrefset
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

R = TypeVar("R")

#: Seconds until a call that goes on is interrupted again: a finalizer or a callback of a weak reference, of any object
#: that happens to die in the thread, swallows every exception and reports it on stderr.
_AGAIN = 0.05
#: Seconds that the end of such code is waited for, looking at the thread every so many seconds.
_PATIENCE, _LOOK = 1.0, 0.001


_WEAK_REFERENCES = (weakref.__file__, _weakrefset.__file__)


class TimeExceeded(Exception):
    """The call took longer than its limit, which is `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it ran for more than {seconds:g} s")


class _Expired(BaseException):
    """Raised in the watched thread. Not an Exception: the code that is watched must not catch it."""


def within(seconds: float, work: Callable[[], R]) -> R:
    """Return what `work` returns, called in this thread. Raise what it raises, and TimeExceeded after `seconds`.

    `_Expired` never leaves this function, neither now nor later. Once `ended` is set, at most two more can come: one
    that is pending, and one that the watchdog is about to raise. Each of the three calls of `end` may be cut off by
    one, or by Ctrl-C, and the next one completes it.
    """
    call = _Call(threading.get_ident(), time.monotonic() + seconds)
    try:
        try:
            try:
                _watchdog.add(call)
                return work()
            finally:
                call.ended = True
                _watchdog.end(call)
        finally:
            _watchdog.end(call)
    except _Expired:
        _watchdog.end(call)
    raise TimeExceeded(seconds)


class _Call:
    """A call that is watched. `ended` is written by its own thread, `firing` and `fired` by the watchdog."""

    __slots__ = ("deadline", "ended", "fired", "firing", "patient_until", "thread")

    def __init__(self, thread: int, deadline: float) -> None:
        self.thread = thread
        self.deadline = deadline
        self.patient_until = deadline + _PATIENCE
        self.ended = False
        self.firing = False
        self.fired = False


class _Watchdog:
    """The thread that interrupts late calls; it sleeps while there are none.

    A watched thread takes no lock here: it could be interrupted while it holds it. It uses single operations that are
    atomic under the interpreter's lock, and the order in which both sides write and read decides:
    the watchdog sets `firing` before it reads `ended`, a call sets `ended` before it reads `firing`.
    """

    def __init__(self) -> None:
        self._calls: dict[_Call, None] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Lock()  # released to wake the thread
        self._wakes_at = math.inf  # when the thread looks by itself; infinite also while it looks

    def add(self, call: _Call) -> None:
        """Interrupt the call's thread from its deadline on."""
        if self._thread is None or not self._thread.is_alive():  # the first call, or the first one after a fork
            self._start()
        self._calls[call] = None
        if call.deadline < self._wakes_at:
            with suppress(RuntimeError):  # it is awake already
                self._wake.release()

    def end(self, call: _Call) -> None:
        """Return when the call's thread is not interrupted any more. May be called again."""
        call.ended = True
        while call.firing:
            time.sleep(0)
        if call.fired:
            self._let_arrive(call)
        self._calls.pop(call, None)

    def _let_arrive(self, call: _Call) -> None:
        """Return when no interruption is pending in this thread, which is the call's.

        One that is pending is raised here, not taken back: CPython 3.11 would keep the flag by which every thread looks
        for one (ceval.c: only raising clears it), and while coverage traces, no thread would go on.
        """
        try:
            _interrupt(call.thread, _Expired)  # in place of one that is pending
            while True:
                time.sleep(0)
        except _Expired:
            call.fired = False

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._calls.clear()  # a fork leaves those of threads that it has not copied
                self._wake = threading.Lock()
                self._thread = threading.Thread(target=self._watch, name="localqwen-time-limit", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            self._wakes_at = math.inf
            now = time.monotonic()
            for call in list(self._calls):
                if call.deadline <= now:
                    self._fire(call, now)
            next_deadline = min((call.deadline for call in list(self._calls)), default=math.inf)
            self._wakes_at = next_deadline
            wait = next_deadline - time.monotonic()
            self._wake.acquire(timeout=min(max(wait, 0), threading.TIMEOUT_MAX))

    def _fire(self, call: _Call, now: float) -> None:
        if now < call.patient_until and _finalizes(call.thread):
            call.deadline = now + _LOOK
            return
        call.firing = True
        if not call.ended:
            call.fired = True
            _interrupt(call.thread, _Expired)
            call.deadline = now + _AGAIN
        call.firing = False


def _finalizes(thread: int) -> bool:
    """Return whether a thread runs a finalizer, or a callback of a weak reference."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename in _WEAK_REFERENCES:
            return True
        frame = frame.f_back
    return False


def _interrupt(thread: int, exception: type[BaseException]) -> None:
    """Raise an exception in a thread at its next bytecode."""
    import ctypes  # here: the command line does not need it to start

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))


_watchdog = _Watchdog()

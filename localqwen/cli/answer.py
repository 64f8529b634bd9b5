"""Receive one answer: show the events of a model's stream and keep what came, also if the user stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from types import FrameType, TracebackType

from localqwen.chat import ChatModel
from localqwen.chat.answer import Answer, AnswerAssembler
from localqwen.chat.messages import Event, Request


def receive(
    model: ChatModel,
    request: Request,
    show: Callable[[Event], None],
    *,
    hurry: Callable[[], bool] = lambda: False,
) -> Answer:
    """Return the whole answer, or the part before Ctrl-C. `hurry` is called between events; if it returns true, the
    thinking ends. A second Ctrl-C raises KeyboardInterrupt.
    """
    assembler = AnswerAssembler()
    with Interrupt() as interrupt, closing(model.stream(request)) as events:
        for event in events:
            assembler.add(event)
            show(event)
            if interrupt.pressed:
                break
            if hurry() and assembler.in_thinking:
                model.end_thinking()
    return assembler.answer()


class Interrupt:
    """A context in which the first Ctrl-C only sets `pressed`, and the next one raises KeyboardInterrupt.

    An exception at any moment could stop an engine in the middle of a step; `pressed` is read between events.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:  # elsewhere Python allows no handlers, and Ctrl-C does not arrive
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

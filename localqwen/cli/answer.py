"""One answer: drives a model's stream, shows its events and keeps what came, also when the user stops it."""

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
    """Return the whole answer, or what came of it before Ctrl-C. `hurry` is called between events; true ends the
    thinking. A second Ctrl-C raises KeyboardInterrupt.
    """
    assembler = AnswerAssembler()
    with Interrupt() as interrupt, closing(model.stream(request)) as events:
        for event in events:
            assembler.add(event)
            show(event)
            if interrupt.asked:
                break
            if hurry() and assembler.in_thinking:
                model.end_thinking()
    return assembler.answer()


class Interrupt:
    """While it is entered, the first Ctrl-C is a wish (`asked`) and the next one raises KeyboardInterrupt.

    An exception out of the blue could leave an engine between two of its steps; a wish is read between events.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:  # elsewhere Python allows no handlers, and Ctrl-C does not arrive
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

"""One answer: drives a model's stream, shows its events and keeps what came, also when the user stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from localqwen.chat import ChatModel
from localqwen.chat.messages import Event, Finished, Message, Request, Started, Text, Thinking, ToolCall


@dataclass(frozen=True)
class Answer:
    """`finished` is None where the user stopped it."""

    thinking: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    finished: Finished | None

    @property
    def empty(self) -> bool:
        return not (self.thinking or self.content or self.tool_calls)

    @property
    def cut(self) -> bool:
        return self.finished is not None and self.finished.finish_reason == "length"

    def message(self) -> Message:
        return Message("assistant", self.content, self.thinking or None, self.tool_calls)


@dataclass
class _Parts:
    thinking: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None
    in_thinking: bool = False

    def add(self, event: Event) -> None:
        match event:
            case Started(thinking=thinking):
                self.in_thinking = thinking
            case Thinking(text):
                self.thinking.append(text)
                self.in_thinking = True
            case Text(text):
                self.content.append(text)
                self.in_thinking = False
            case ToolCall():
                self.calls.append(event)
                self.in_thinking = False
            case Finished():
                self.finished = event

    def answer(self) -> Answer:
        return Answer("".join(self.thinking), "".join(self.content), tuple(self.calls), self.finished)


def receive(
    model: ChatModel,
    request: Request,
    show: Callable[[Event], None],
    *,
    hurry: Callable[[], bool] = lambda: False,
) -> Answer:
    """The whole answer, or what came of it before Ctrl-C. `hurry` is asked between events: true ends the thinking.

    A second Ctrl-C raises KeyboardInterrupt.
    """
    parts = _Parts()
    with Interrupt() as interrupt, closing(model.stream(request)) as events:
        for event in events:
            parts.add(event)
            show(event)
            if interrupt.asked:
                break
            if hurry() and parts.in_thinking:
                model.end_thinking()
    return parts.answer()


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

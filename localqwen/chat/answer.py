"""The events of one answer, joined into a value. Every part of the program that shows, logs or sends whole answers
gets them from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    PrefillProgress,
    Started,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
)
from localqwen.errors import EngineError


@dataclass(frozen=True)
class Answer:
    """One answer, or as much of it as came. `finished` is None for an answer that was stopped; `logprobs` are those of
    the tokens of `content`, where the request asked for them."""

    thinking: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    started: Started | None = None
    finished: Finished | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of(cls, events: Iterable[Event]) -> Answer:
        """Return the answer that these events make."""
        assembler = AnswerAssembler()
        for event in events:
            assembler.add(event)
        return assembler.answer()

    @property
    def empty(self) -> bool:
        """Return whether nothing came that a person could read."""
        return not (self.thinking or self.content or self.tool_calls)

    @property
    def cut(self) -> bool:
        """Return whether the answer ended because its tokens or its context ran out."""
        return self.finished is not None and self.finished.finish_reason == "length"

    @property
    def end(self) -> Finished:
        """Return the last event. Raise EngineError for an answer that never finished."""
        if self.finished is None:
            raise EngineError("an answer stopped before its end", "run it again")
        return self.finished

    def message(self) -> Message:
        """Return the answer as a turn of the conversation."""
        return Message("assistant", self.content, self.thinking or None, self.tool_calls)


class AnswerAssembler:
    """Takes the events of one answer as they come. `in_thinking` says whether the answer is inside its thinking, as far
    as its events show."""

    def __init__(self) -> None:
        self.in_thinking = False
        self._thinking: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._started: Started | None = None
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take the next event of the answer."""
        match event:
            case Started(thinking=thinking):
                self._started, self.in_thinking = event, thinking
            case Thinking(text):
                self._thinking.append(text)
                self.in_thinking = True
            case Text(text, logprobs):
                self._content.append(text)
                self._logprobs += logprobs
                self.in_thinking = False
            case ToolCall():
                self._calls.append(event)
                self.in_thinking = False
            case Finished():
                self._finished = event
            case PrefillProgress():
                pass

    def answer(self) -> Answer:
        """Return what has come so far."""
        return Answer(
            "".join(self._thinking),
            "".join(self._content),
            tuple(self._calls),
            self._started,
            self._finished,
            tuple(self._logprobs),
        )

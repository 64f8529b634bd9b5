"""Show an answer: its text on stdout, everything else on stderr, thinking dim.

Knows nothing about models; `Printer.show` takes events. Without a terminal there is no colour, and no text is changed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from localqwen.chat import ChatModel
from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Finished, PrefillProgress, Started, Text, Thinking, ToolCall

#: Control characters from a model could move the cursor, set the title or write to the clipboard: show their symbols.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE[0x7F] = 0x2421
_VISIBLE.update(dict.fromkeys(range(0x80, 0xA0), 0xFFFD))

#: Seconds after which a prefill shows its progress.
PATIENCE = 1.0

LENGTH_WARNING = "the answer was cut at its token limit; raise it with --max-tokens, or the context with --ctx"


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal."""
    return not stream.closed and stream.isatty()


@dataclass
class Channel:
    """A stream that knows whether it is a terminal and whether it is at the start of a line."""

    stream: TextIO
    fresh: bool = True

    def __post_init__(self) -> None:
        self.terminal = is_terminal(self.stream)
        self.colour = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def write(self, text: str, *, dim: bool = False) -> None:
        """Write text; on a terminal dim if wanted, and without control characters."""
        if not text:
            return
        shown = text.translate(_VISIBLE) if self.terminal else text
        self._raw(f"\x1b[2m{shown}\x1b[0m" if dim and self.colour else shown)
        self.fresh = text.endswith("\n")

    def line(self, text: str, *, dim: bool = False) -> None:
        """Write one line; end an unfinished line first."""
        self.end_line()
        self.write(text, dim=dim)
        self.end_line()

    def end_line(self) -> None:
        """End the line unless it is ended."""
        if not self.fresh:
            self.write("\n")

    def erase_line(self) -> None:
        """Erase a line that was written without its end; only on a terminal."""
        if self.terminal and not self.fresh:
            self._raw("\r\x1b[K" if self.colour else "\n")
            self.fresh = True

    def _raw(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


@dataclass
class Printer:
    """Shows the events of one answer after the other. `thinking_hint` is shown when the thinking begins."""

    answer: Channel
    aside: Channel
    hide_thinking: bool = False
    thinking_hint: str = ""
    clock: Callable[[], float] = time.monotonic
    _line_breaks: str = field(default="", init=False)  # line breaks at the end of the answer, until more text comes
    _wrote: bool = field(default=False, init=False)
    _thinking: bool = field(default=False, init=False)
    _started: float = field(default=0.0, init=False)
    _reading: bool = field(default=False, init=False)  # a line shows the progress of the prefill

    def show(self, event: Event) -> None:
        """Show one event."""
        self._end_reading()
        match event:
            case Started(thinking=thinking, warnings=warnings):
                self._start(thinking, warnings)
            case PrefillProgress(prefilled, prompt_tokens):
                self._read(prefilled, prompt_tokens)
            case Thinking(text):
                self._begin_thinking()
                if not self.hide_thinking:
                    self.aside.write(text, dim=True)
            case Text(text):
                self._end_thinking()
                self._write(text)
            case ToolCall():
                self._end_thinking()
                self._tool_call(event)
            case Finished():
                pass

    def finish(self, *, newline_if_empty: bool = False) -> None:
        """End the answer with exactly one line break, whether it is complete or not."""
        self._end_reading()
        self._end_thinking()
        if self._wrote:
            self.answer.end_line()
        elif newline_if_empty:
            self.answer.write("\n")
        self._line_breaks, self._wrote = "", False

    def note(self, text: str) -> None:
        """Write a dim line to stderr."""
        self.aside.line(text, dim=True)

    def _read(self, prefilled: int, prompt_tokens: int) -> None:
        """Show how much of a long prompt is prefilled, if the line can be erased later and the user has waited for a
        while."""
        slow = self.clock() - self._started > PATIENCE
        if slow and prefilled < prompt_tokens and self.aside.colour and self.aside.fresh:
            self.aside.write(f"computing the prompt: {prefilled:,} of {prompt_tokens:,} tokens", dim=True)
            self._reading = True

    def _end_reading(self) -> None:
        if self._reading:
            self.aside.erase_line()
            self._reading = False

    def _start(self, thinking: bool, warnings: tuple[str, ...]) -> None:
        self._started = self.clock()
        for warning in warnings:
            self.aside.line(f"warning: {warning}")
        if thinking:
            self._begin_thinking()

    def _begin_thinking(self) -> None:
        if self._thinking:
            return
        self._thinking = True
        if self.thinking_hint:
            self.aside.write(self.thinking_hint, dim=True)
            if not self.hide_thinking:
                self.aside.write("\n")

    def _end_thinking(self) -> None:
        """Begin the answer below the thinking, or in place of the hint if the thinking is hidden."""
        if not self._thinking:
            return
        self._thinking = False
        if self.hide_thinking:
            self.aside.erase_line()
        elif not self.aside.fresh:
            self.aside.write("\n\n" if self.aside.terminal else "\n")

    def _write(self, text: str) -> None:
        whole = self._line_breaks + text
        visible = whole.rstrip("\n")
        self._line_breaks = whole[len(visible) :]
        if visible:
            self.answer.write(visible)
            self._wrote = True

    def _tool_call(self, call: ToolCall) -> None:
        self._line_breaks = ""
        self.answer.line(json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False))
        self._wrote = True


def stats_line(answer: Answer, model: ChatModel) -> str:
    """Return the tokens and speeds of one answer; what was not measured is left out."""
    if answer.finished is None:
        return "stopped: no statistics"
    usage, timing = answer.finished.usage, answer.finished.timing
    parts = [
        _ms("load", model.load_ms),
        _ms("first token", timing.first_token_ms),
        _ms("first answer", timing.first_answer_ms),
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached){_speed(timing.prompt_per_second)}",
        f"answer {usage.completion_tokens} tokens ({usage.thinking_tokens} thinking)"
        + _speed(timing.predicted_per_second),
        model.backend_description,
    ]
    return " · ".join(part for part in parts if part)


def _ms(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {value:,.0f} ms"


def _speed(value: float | None) -> str:
    return "" if value is None else f" at {value:,.1f} tokens/s"

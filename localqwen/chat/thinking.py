"""What of an answer is thinking, what is text, what is a tool call: a parser for the stream, and the switch before it.

Tags are found in text, not by token id, and the joined output never depends on how the text was cut. The decisions that
implementations differ in are the cases of `tests/vectors/parser.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from localqwen.chat.messages import Message, Request, Text, Thinking, ThinkingMode, ToolCall
from localqwen.chat.toolcalls import BLANK, Found, Item, NoCalls, Plain, ToolCallScanner, partial_tag
from localqwen.errors import Unsupported, UsageError

OPEN = "<think>"
CLOSE = "</think>"
Start = Literal["auto", "open", "off"]
Output = Thinking | Text | ToolCall

#: A word of its own: white space or nothing on either side.
_SOFT_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?!\S)")


def soft_switch(messages: Sequence[Message]) -> bool | None:
    """Return what the last `/think` or `/no_think` in a system or user message asks for; None without one."""
    for message in reversed(messages):
        if message.role in ("system", "user"):
            found = _SOFT_SWITCH.findall(message.content)
            if found:
                return not found[-1]
    return None


def resolve_thinking(request: Request, mode: ThinkingMode, model: str) -> bool:
    """Return whether this answer thinks. The hard switch wins, then a budget of 0, then the last soft switch, then the
    mode.

    Raise Unsupported if the model cannot do what the request says.
    """
    if request.budget is not None and request.budget < 0:
        raise UsageError(f"the thinking budget is {request.budget}", "a budget is 0 (thinking off) or more tokens")
    wanted = False if request.budget == 0 else request.think
    if mode == "never":
        if wanted or request.budget:
            raise Unsupported(f"{model} cannot think", f"leave out the switch and the budget; {_that_switch()}")
        return False
    if mode == "always":
        if wanted is False:
            raise Unsupported(f"{model} always thinks", f"limit it with a budget of 256; {_that_switch()}")
        return True
    if wanted is not None:
        return wanted
    soft = soft_switch(request.messages)
    return True if soft is None else soft


def _that_switch() -> str:
    """Return which models have the switch, for a hint about one that has not."""
    from localqwen.models import registry

    return f"the switch is in {', '.join(m.name for m in registry.models().values() if m.thinking == 'switch')}"


def prompt_start(prompt: str, thinking: bool) -> Start:
    """Return the parser's first state: the prompt ends inside an open block, thinking is off, or the model may open
    one."""
    if prompt.rstrip().endswith(OPEN):
        return "open"
    return "auto" if thinking else "off"


class ThinkingParser:
    """Turns the text of an answer into thinking, text and tool calls, without tags and without the line breaks that
    only separate them. With `calls` False calls stay text."""

    def __init__(self, start: Start = "auto", *, calls: bool = True) -> None:
        self._phase: Literal["before", "thinking", "answer"] = "answer" if start == "off" else "before"
        self._open = start == "open"
        self.closed = False  # a closing tag came
        self._blanks: list[str] = []  # before the first visible character
        self._buffer = ""
        scanner = ToolCallScanner if calls else NoCalls
        self._thought = _ThinkingText(scanner())
        self._answer = _AnswerText(scanner())

    @property
    def thinking(self) -> bool:
        """Return whether the text that comes next belongs to the thinking, as far as can be told."""
        return self._phase == "thinking" or (self._phase == "before" and self._open)

    @property
    def answering(self) -> bool:
        """Return whether the thinking is over, or there is none."""
        return self._phase == "answer"

    def feed(self, text: str) -> list[Output]:
        """Take more text. Return what is clear by now."""
        if self._phase == "answer":
            return self._answer.feed(text)
        self._buffer += text
        output: list[Output] = []
        if self._phase == "before":
            output += self._decide()
        if self._phase == "thinking":
            output += self._think()
        return output

    def finish(self) -> list[Output]:
        """Return what was held back, at the end of the output. Unfinished thinking stays thinking, but for a tool call
        in it that nothing closed."""
        rest, self._buffer = self._begun_with_blanks(), ""
        if self.thinking:
            output, left = self._thought.finish(rest)
            return output + self._answer.feed_items(left) + self._answer.finish() if left else output
        return self._answer.feed(rest) + self._answer.finish()

    def _decide(self) -> list[Output]:
        """Before the first visible character: an opening tag (again), the start of one, or neither."""
        body = self._buffer.lstrip(BLANK)
        self._blanks.append(self._buffer[: len(self._buffer) - len(body)])
        self._buffer = body
        if body.startswith(OPEN):
            self._phase, self._buffer, self._blanks = "thinking", body[len(OPEN) :], []
        elif OPEN.startswith(body):
            return []
        elif self._open:
            self._phase, self._buffer = "thinking", self._begun_with_blanks()
        else:
            self._phase = "answer"
            text, self._buffer = self._begun_with_blanks(), ""
            return self._answer.feed(text)
        return []

    def _begun_with_blanks(self) -> str:
        """Return the undecided text with the blanks before it, which are forgotten."""
        text, self._blanks = "".join([*self._blanks, self._buffer]), []
        return text

    def _think(self) -> list[Output]:
        at = self._buffer.find(CLOSE)
        if at < 0:
            end = len(self._buffer) - partial_tag(self._buffer, CLOSE)
            text, self._buffer = self._buffer[:end], self._buffer[end:]
            return self._thought.feed(text)
        text, rest = self._buffer[:at], self._buffer[at + len(CLOSE) :]
        self._phase, self._buffer, self.closed = "answer", "", True
        self._answer.after_thinking()
        return self._thought.close(text) + self._answer.feed(rest)


class PlainParser:
    """Takes the place of ThinkingParser for text that is continued as it stands: all of it is text."""

    thinking = False
    answering = True
    closed = False

    def feed(self, text: str) -> list[Output]:
        """Return the text."""
        return [Text(text)] if text else []

    def finish(self) -> list[Output]:
        """Return nothing: no text is held back."""
        return []


class _ThinkingText:
    """The inside of a think block: outer line breaks trimmed. A whole tool call in it waits until it is clear whether
    the block is closed (then it was a draft, and thinking) or not (then the call ended the thinking)."""

    def __init__(self, scanner: ToolCallScanner | NoCalls) -> None:
        self._scanner = scanner
        self._pending: list[Item] = []
        self._breaks: list[str] = []  # held back: the last ones are trimmed
        self._begun = False

    def feed(self, text: str) -> list[Output]:
        return self._take(self._scanner.feed(text))

    def close(self, text: str) -> list[Output]:
        output = self.feed(text)
        drafts = "".join(item.text for item in self._pending) + self._scanner.release()
        return output + self._show(drafts)

    def finish(self, text: str) -> tuple[list[Output], list[Item]]:
        """Return the thinking, and what belongs to the answer, from the first unclosed call on."""
        output = self._take(self._scanner.feed(text))
        return output + self._take(self._scanner.finish()), self._pending

    def _take(self, items: list[Item]) -> list[Output]:
        output: list[Output] = []
        for item in items:
            if self._pending or isinstance(item, Found):
                self._pending.append(item)
            else:
                output += self._show(item.text)
        return output

    def _show(self, text: str) -> list[Output]:
        text = text if self._begun else text.lstrip("\n")
        body = text.rstrip("\n")
        breaks, rest = self._breaks, text[len(body) :]
        if not body:
            breaks.append(rest)
            return []
        self._begun, self._breaks = True, [rest]
        return [Thinking("".join([*breaks, body]))]


class _AnswerText:
    """The answer: text and calls. Blanks around a call only separate it and are dropped, but between two texts."""

    def __init__(self, scanner: ToolCallScanner | NoCalls) -> None:
        self._scanner = scanner
        self._trim = ""  # characters to drop before the next text
        self._blanks: list[str] = []  # held back: a call may follow
        self._begun = False

    def after_thinking(self) -> None:
        self._trim = "\n"

    def feed(self, text: str) -> list[Output]:
        return self.feed_items(self._scanner.feed(text))

    def feed_items(self, items: list[Item]) -> list[Output]:
        output: list[Output] = []
        for item in items:
            output += [self._call(item)] if isinstance(item, Found) else self._show(item)
        return output

    def finish(self) -> list[Output]:
        output = self.feed_items(self._scanner.finish())
        blanks, self._blanks = "".join(self._blanks), []
        if blanks and self._trim != BLANK:
            output.append(Text(blanks))
        return output

    def _call(self, found: Found) -> ToolCall:
        self._trim = BLANK
        if not self._begun:
            self._blanks = []
        return found.call

    def _show(self, plain: Plain) -> list[Output]:
        text = plain.text.lstrip(self._trim) if self._trim else plain.text
        if not text:
            return []
        self._trim = ""
        body = text.rstrip(BLANK)
        blanks, rest = self._blanks, text[len(body) :]
        if not body:
            blanks.append(rest)
            return []
        self._begun, self._blanks = True, [rest]
        return [Text("".join([*blanks, body]))]


@dataclass(frozen=True)
class ParsedOutput:
    """A whole answer, parsed."""

    thinking: str
    content: str
    tool_calls: tuple[ToolCall, ...]


def parse_output(chunks: Iterable[str], *, start: Start = "auto") -> ParsedOutput:
    """Parse a whole answer given in pieces. `start` says how its prompt ended: see `prompt_start`."""
    parser = ThinkingParser(start)
    output = [part for chunk in chunks for part in parser.feed(chunk)] + parser.finish()
    return ParsedOutput(
        thinking="".join(part.text for part in output if isinstance(part, Thinking)),
        content="".join(part.text for part in output if isinstance(part, Text)),
        tool_calls=tuple(part for part in output if isinstance(part, ToolCall)),
    )

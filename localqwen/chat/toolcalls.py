"""Finds `<tool_call>{"name": …, "arguments": {…}}</tool_call>` in a stream of text.

Knows nothing of thinking. JSON is followed character by character, so a closing tag inside a string ends nothing and no
text is read twice. What turns out not to be a call is text again, to the letter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from localqwen.chat.messages import ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
BLANK = " \t\r\n"
#: What may stand in JSON outside strings; anything else shows at once that this is no call.
_JSON = frozenset('{}[]:,"+-.0123456789eEtrufalsn' + BLANK)


@dataclass(frozen=True)
class Plain:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Found:
    """A call, and the text it was written as."""

    call: ToolCall
    text: str


Item = Plain | Found


def partial_tag(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that `tag` could begin with (shorter than the whole tag)."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


def read_call(source: str) -> ToolCall | None:
    """Return the call in a JSON object, or None. Arguments may be an object, a string that holds one, or left out."""
    try:
        data = json.loads(source, strict=False)  # models write raw line breaks into strings
        arguments = data.get("arguments")
        if isinstance(arguments, str):
            arguments = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return None
    name = data.get("name")
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)


class ToolCallScanner:
    """Finds tool calls in text: gives plain text and calls in their order."""

    def __init__(self) -> None:
        self._buffer = ""
        self._json: _JsonObject | None = None  # set once the buffer begins with OPEN

    def feed(self, text: str) -> list[Item]:
        """Take more text. Return the text and calls that are clear by now."""
        self._buffer += text
        items: list[Item] = []
        while (item := self._next()) is not None:
            items.append(item)
        return items

    def finish(self) -> list[Item]:
        """Return what is undecided, at the end of the text: a call whose JSON is whole counts without its closing tag,
        all else is text."""
        items: list[Item] = []
        while self._buffer:
            if self._json is not None and self._json.end is not None and self._closing_tag_may_follow():
                items.append(self._found(len(self._buffer)) or self._not_a_call())
            else:
                items.append(self._not_a_call() if self._json is not None else Plain(self.release()))
            items.extend(self.feed(""))
        return items

    def release(self) -> str:
        """Return the text that is still undecided, and forget it."""
        text, self._buffer, self._json = self._buffer, "", None
        return text

    def _next(self) -> Item | None:
        """One decided item, or None where more text is needed."""
        if self._json is None:
            at = self._buffer.find(OPEN)
            if at == 0:
                self._json = _JsonObject(len(OPEN))
                return self._next()
            end = at if at > 0 else len(self._buffer) - partial_tag(self._buffer, OPEN)
            return self._plain(end) if end else None
        self._json.read(self._buffer)
        if self._json.broken:
            return self._not_a_call()
        return None if self._json.end is None else self._close(self._json.end)

    def _close(self, json_end: int) -> Item | None:
        rest = self._buffer[json_end:].lstrip(BLANK)
        if rest.startswith(CLOSE):
            return self._found(len(self._buffer) - len(rest) + len(CLOSE)) or self._not_a_call()
        if rest.startswith(OPEN):  # the model forgot the closing tag and went on to its next call
            return self._found(json_end) or self._not_a_call()
        return None if CLOSE.startswith(rest) or OPEN.startswith(rest) else self._not_a_call()

    def _closing_tag_may_follow(self) -> bool:
        assert self._json is not None
        return CLOSE.startswith(self._buffer[self._json.end :].strip(BLANK))

    def _found(self, end: int) -> Found | None:
        assert self._json is not None
        call = read_call(self._buffer[len(OPEN) : self._json.end])
        if call is None:
            return None
        text, self._buffer, self._json = self._buffer[:end], self._buffer[end:], None
        return Found(call, text)

    def _not_a_call(self) -> Plain:
        """The opening tag is text; what follows it is looked at afresh, for a real call may stand there."""
        self._json = None
        return self._plain(len(OPEN))

    def _plain(self, end: int) -> Plain:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        return Plain(text)


class _JsonObject:
    """Follows one JSON object through a growing buffer. `end` is the index behind its last brace."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.end: int | None = None
        self.broken = False

    def read(self, buffer: str) -> None:
        while self.end is None and not self.broken and self._at < len(buffer):
            character = buffer[self._at]
            self._at += 1
            if self._in_string:
                self._read_in_string(character)
            else:
                self._read_outside(character)

    def _read_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False

    def _read_outside(self, character: str) -> None:
        if character not in _JSON or (self._depth == 0 and character not in "{" + BLANK):
            self.broken = True
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth == 0:
                self.end = self._at


class NoCalls:
    """Takes the place of ToolCallScanner where calls are not looked for: all of it is text."""

    def feed(self, text: str) -> list[Item]:
        """Return the text."""
        return [Plain(text)] if text else []

    def release(self) -> str:
        """Return nothing: no text is undecided."""
        return ""

    def finish(self) -> list[Item]:
        """Return nothing: no text is undecided."""
        return []

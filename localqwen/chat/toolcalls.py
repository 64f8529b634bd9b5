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
    """Finds tool calls in text: gives plain text and calls in their order, in a time linear in the text."""

    def __init__(self) -> None:
        self._buffer = ""
        self._begin = 0  # where in the buffer the undecided text begins
        self._added: list[str] = []  # text behind the buffer, of a call that is still open
        self._call: _Call | None = None  # set once the undecided text begins with OPEN

    def feed(self, text: str) -> list[Item]:
        """Take more text. Return the text and calls that are clear by now."""
        self._added.append(text)
        if self._call is not None:
            self._call.read(text)
            if self._call.undecided:
                return []
        self._join()
        return self._decided()

    def finish(self) -> list[Item]:
        """Return what is undecided, at the end of the text: a call whose JSON is whole counts without its closing tag,
        all else is text."""
        self._join()
        items: list[Item] = []
        while self._begin < len(self._buffer):
            if self._call is None:
                items.append(Plain(self.release()))
            elif self._call.end is not None and CLOSE.startswith(self._call.tail):
                items.append(self._found(len(self._buffer) - self._begin) or self._not_a_call())
            else:
                items.append(self._not_a_call())
            items += self._decided()
        return items

    def release(self) -> str:
        """Return the text that is still undecided, and forget it."""
        self._join()
        text, self._buffer, self._call = self._buffer, "", None
        return text

    def _join(self) -> None:
        self._buffer = "".join([self._buffer[self._begin :], *self._added])
        self._begin, self._added = 0, []

    def _decided(self) -> list[Item]:
        items: list[Item] = []
        while (item := self._next()) is not None:
            items.append(item)
        return items

    def _next(self) -> Item | None:
        """One decided item, or None where more text is needed."""
        if self._call is None:
            at = self._buffer.find(OPEN, self._begin)
            if at == self._begin:
                self._call = _Call()
                self._call.read(self._buffer, at)
                return self._next()
            undecided = partial_tag(self._buffer[max(self._begin, len(self._buffer) - len(OPEN)) :], OPEN)
            end = at if at > 0 else len(self._buffer) - undecided
            return self._plain(end - self._begin) if end > self._begin else None
        if self._call.undecided:
            return None
        return self._not_a_call() if self._call.broken else self._found(self._call.whole) or self._not_a_call()

    def _found(self, length: int) -> Found | None:
        assert self._call is not None
        assert self._call.end is not None
        call = read_call(self._buffer[self._begin + len(OPEN) : self._begin + self._call.end])
        if call is None:
            return None
        self._call = None
        return Found(call, self._plain(length).text)

    def _not_a_call(self) -> Plain:
        """The opening tag is text; what follows it is looked at afresh, for a real call may stand there."""
        self._call = None
        return self._plain(len(OPEN))

    def _plain(self, length: int) -> Plain:
        text = self._buffer[self._begin : self._begin + length]
        self._begin += length
        return Plain(text)


class _Call:
    """Follows one call through the text from its opening tag on: a JSON object, blanks, and the closing tag, or the
    opening tag of the next call if the model forgot it. Lengths are characters from the beginning of the tag."""

    def __init__(self) -> None:
        self._read = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.end: int | None = None  # of the JSON object
        self.tail = ""  # what stands behind it, without the blanks
        self.whole = 0  # of the call, once it is closed
        self.broken = False

    @property
    def undecided(self) -> bool:
        return not self.broken and not self.whole

    def read(self, text: str, begin: int = 0) -> None:
        """Go on with the text from `begin` on, as far as it decides something."""
        at = begin if self._read else begin + len(OPEN)
        self._read = self._read or len(OPEN)
        while self.undecided and at < len(text):
            character = text[at]
            at += 1
            self._read += 1
            if self.end is not None:
                self._read_behind(character)
            elif self._in_string:
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
                self.end = self._read

    def _read_behind(self, character: str) -> None:
        if not self.tail and character in BLANK:
            return
        self.tail += character
        if self.tail == CLOSE:
            self.whole = self._read
        elif self.tail == OPEN:
            assert self.end is not None
            self.whole = self.end
        else:
            self.broken = not (CLOSE.startswith(self.tail) or OPEN.startswith(self.tail))


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

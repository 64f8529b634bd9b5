"""Read the REPL's lines from a pipe or a file, and recognize blocks of lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TextIO

from localqwen.errors import UsageError

BLOCK = '"""'
#: No work to do while the user types.
NOTHING: Iterator[None] = iter(())


class Reader(Protocol):
    """The source of the REPL's lines."""

    interactive: bool

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
        """Return the next message or command; a block includes its marks. `typed` is what the user typed meanwhile;
        `meanwhile` runs until there is input.

        Raise EOFError at the end, KeyboardInterrupt for Ctrl-C at an empty prompt.
        """
        ...


class LineReader:
    """Reads a pipe or a file, line by line."""

    interactive = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
        """Return the next line, or the next block of lines."""
        text = self._line()
        if not text:
            raise EOFError
        while block_is_open(text):
            line = self._line()
            if not line:
                break
            text += line
        return text.rstrip("\n")

    def _line(self) -> str:
        try:
            return self._stream.readline()
        except UnicodeDecodeError as exc:
            raise UsageError(
                "standard input is not UTF-8 text", "convert it first: iconv -f latin1 -t utf-8 FILE"
            ) from exc


def block_is_open(text: str) -> bool:
    """Return whether a message begins with three quotes and has no closing ones yet."""
    stripped = text.strip()
    return stripped.startswith(BLOCK) and (len(stripped) < 2 * len(BLOCK) or not stripped.endswith(BLOCK))


def without_marks(text: str) -> str:
    """Return the text inside a block; other text is unchanged."""
    stripped = text.strip()
    if not stripped.startswith(BLOCK):
        return text
    return stripped.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")

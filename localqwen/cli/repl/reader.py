"""Where the REPL's lines come from when no keyboard is there, and what a block of lines is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TextIO

from localqwen.errors import UsageError

BLOCK = '"""'
#: There is nothing to go on with while the user types.
NOTHING: Iterator[None] = iter(())


class Reader(Protocol):
    interactive: bool

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
        """The next message or command, a block with its marks. `typed` is what the user typed ahead; `meanwhile` goes
        on until there is input.

        Raises EOFError at the end, KeyboardInterrupt for Ctrl-C at an empty prompt.
        """
        ...


class LineReader:
    """A pipe or a file, line by line."""

    interactive = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
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
    """Whether a message that begins with three quotes has not come to its three closing quotes."""
    stripped = text.strip()
    return stripped.startswith(BLOCK) and (len(stripped) < 2 * len(BLOCK) or not stripped.endswith(BLOCK))


def without_marks(text: str) -> str:
    """The text inside a block; other text as it is."""
    stripped = text.strip()
    if not stripped.startswith(BLOCK):
        return text
    return stripped.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")

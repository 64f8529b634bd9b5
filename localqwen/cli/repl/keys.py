"""Read keys while an answer streams, and restore the terminal whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Generator
from types import FrameType, TracebackType
from typing import Any, Protocol

from localqwen.machine import posix

HURRY = "\t"
HURRY_NAME = "Tab"
TERMINATED = 128 + signal.SIGTERM


class Keys(Protocol):
    """The keyboard during one answer; use it with `with`. `typed` is what was typed meanwhile: the beginning of the
    next question."""

    hint: str
    typed: str

    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def hurry(self) -> bool:
        """Return whether the key that ends the thinking was pressed since the last call."""
        ...


class NoKeys:
    """A keyboard that does not exist."""

    hint = ""
    typed = ""

    def __enter__(self) -> NoKeys:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def hurry(self) -> bool:
        """Return False."""
        return False


class TerminalKeys:
    """Reads single keys without echo; Ctrl-C and Ctrl-Z keep their meaning. Outside of `with` the terminal is
    normal."""

    hint = f"thinking… press {HURRY_NAME} to answer now"

    def __init__(self, file: int) -> None:
        self._file = file
        self.typed = ""

    def __enter__(self) -> TerminalKeys:
        self.typed = ""
        self._before = posix.terminal_modes(self._file)
        self._on_stop = posix.on_suspend(self._suspend)
        posix.give_single_keys(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        posix.set_terminal_modes(self._file, self._before)
        posix.on_suspend(self._on_stop)

    def hurry(self) -> bool:
        """Read the typed keys; return whether one of them ends the thinking."""
        if not select.select([self._file], [], [], 0)[0]:
            return False
        pressed = os.read(self._file, 1024).decode(errors="ignore")
        self.typed = _type(self.typed, pressed)
        return HURRY in pressed

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop on Ctrl-Z with a normal terminal, and continue with single keys after `fg`."""
        posix.set_terminal_modes(self._file, self._before)
        posix.suspend(self._suspend)
        if posix.in_foreground(self._file):
            posix.give_single_keys(self._file)


def _type(before: str, pressed: str) -> str:
    """Return the typed text after editing; arrow keys and similar keys begin with escape and are ignored."""
    text = before
    for character in pressed.partition("\x1b")[0]:
        if character in "\x7f\b":
            text = text[:-1]
        elif character.isprintable():
            text += character
    return text


@contextlib.contextmanager
def terminal_kept(file: int | None) -> Generator[None, None, None]:
    """Protect the terminal during a whole session: SIGTERM becomes an orderly exit, and every exit restores the
    terminal's modes."""
    if file is None:
        yield
        return
    modes = posix.terminal_modes(file)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        posix.set_terminal_modes(file, modes)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)

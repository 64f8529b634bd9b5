"""The REPL's prompt on a terminal: line editing, history, several lines, completion of commands (prompt_toolkit)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.eventloop.inputhook import InputHookContext
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from localqwen.chat.session import private_folder
from localqwen.cli.repl.reader import NOTHING, block_is_open

PROMPT = ">>> "
CONTINUATION = "... "
_ENDED = object()


class CommandCompleter(Completer):
    """Completes commands while the line is a slash and the beginning of a word."""

    def __init__(self, commands: Sequence[tuple[str, str]]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the commands that begin with the typed text."""
        typed = document.text_before_cursor
        if typed.startswith("/") and " " not in typed and "\n" not in typed:
            for name, help_text in self._commands:
                if name.startswith(typed):
                    yield Completion(name, start_position=-len(typed), display_meta=help_text)


class TerminalReader:
    """Reads lines with an editor. `commands` are names with their help; `input` and `output` are the terminal, or those
    of a test."""

    interactive = True

    def __init__(
        self,
        commands: Sequence[tuple[str, str]],
        history: Path | None,
        *,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUATION,
            history=_history(history),
            completer=CommandCompleter(commands),
            key_bindings=_keys(),
            input=input,
            output=output or create_output(always_prefer_tty=True),
        )

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
        """Return the next message or command; see Reader."""

        def go_on(context: InputHookContext) -> None:
            while not context.input_is_ready() and next(meanwhile, _ENDED) is not _ENDED:
                pass

        while True:
            try:
                return self._session.prompt(default=typed, inputhook=go_on)
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
                typed = ""  # Ctrl-C on a line clears it
                self._session.default_buffer.reset()  # the next Ctrl-C may come before the prompt does


def _keys() -> KeyBindings:
    """Return the key bindings: Enter sends, unless a block of lines is open; Alt-Enter begins a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if block_is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _history(path: Path | None) -> History:
    """Return the history file, which only its owner can read: it contains the user's questions."""
    if path is None:
        return InMemoryHistory()
    private_folder(path.parent)
    path.touch(mode=0o600)
    return FileHistory(str(path))

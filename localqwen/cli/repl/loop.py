"""The conversation loop: a line is a command or a question, a question gets an answer, everything is logged.

The caller passes the model, the lines and the streams, so that a test can play a whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from localqwen.chat import ChatModel
from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Message, Request, Text, Thinking
from localqwen.chat.session import Session
from localqwen.chat.thinking import soft_switch
from localqwen.cli import INTERRUPTED
from localqwen.cli.answer import receive
from localqwen.cli.console import LENGTH_WARNING, Printer, stats_line
from localqwen.cli.options import Settings
from localqwen.cli.repl import commands as repl_commands
from localqwen.cli.repl.keys import Keys, NoKeys
from localqwen.cli.repl.reader import Reader, without_marks
from localqwen.errors import LocalqwenError, UsageError

LEAVE_HINT = "press Ctrl-C again or type /bye to leave"


@dataclass
class Repl:
    """The state of a running chat. Commands change `settings` and `session`; `last` is the last answer."""

    model: ChatModel
    session: Session
    reader: Reader
    printer: Printer
    settings: Settings = field(default_factory=Settings)
    keys: Keys = field(default_factory=NoKeys)
    prefill_ahead: bool = True
    last: Answer | None = None
    exit_code: int = 0
    _shown_failure: LocalqwenError | None = field(default=None, init=False)

    def run(self) -> int:
        """Read lines until the user leaves, and return the exit code: from a pipe, that of the last line that
        failed."""
        warned = False
        typed = ""
        while True:
            try:
                line = self.reader.read(typed, self._prefill_ahead())
            except EOFError:
                return self.exit_code
            except KeyboardInterrupt:
                if warned or not self.reader.interactive:
                    return INTERRUPTED
                self.printer.note(LEAVE_HINT)
                warned, typed = True, ""
                continue
            warned = False
            if not self.turn(line):
                return self.exit_code
            if self._stopped and not self.reader.interactive:
                return INTERRUPTED
            typed, self.keys.typed = self.keys.typed, ""

    def _prefill_ahead(self) -> Iterator[None]:
        """Prefill the history ahead while the user reads and types. The template drops the last answer's thinking, so
        its text would otherwise be computed again with the next question."""
        conversation = self.session.conversation
        *before, answer = conversation.messages or (None,)
        if not (self.prefill_ahead and self.reader.interactive and answer and answer.role == "assistant"):
            return
        try:
            yield from self.model.prefill_ahead(self.settings.request(before, system=conversation.system), answer)
        except LocalqwenError:  # the next question meets the same error, and shows it
            return

    @property
    def _stopped(self) -> bool:
        return self.last is not None and self.last.finished is None

    def turn(self, line: str) -> bool:
        """Handle one line; return False if it leaves. Errors are shown, and the conversation continues."""
        try:
            return self._handle(line)
        except LocalqwenError as error:
            self.printer.aside.line(f"Error: {error.message}")
            if error.hint:
                self.printer.aside.line(f"\nhint: {error.hint}")
            self.exit_code = 0 if self.reader.interactive else error.exit_code
            return True
        finally:
            self._say_if_not_logged()

    def _handle(self, line: str) -> bool:
        if line.startswith("/") and not _is_question(line):
            return repl_commands.execute(self, line)
        text = without_marks(line).strip()
        if text:
            self.ask(text)
        return True

    def _say_if_not_logged(self) -> None:
        failure = self.session.failure
        if failure and failure is not self._shown_failure:
            self.printer.aside.line(f"warning: this conversation is not logged: {failure.message}")
        self._shown_failure = failure

    def ask(self, text: str) -> None:
        """Answer a question. A question that fails leaves no trace in the history."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("the message is not UTF-8 text", "use a terminal that writes UTF-8")
        if self.session.conversation.unanswered:  # stopped before any text, or the chat was killed
            self.session.undo()
        self.session.add(Message("user", text))
        try:
            self._answer()
        except LocalqwenError:
            self.session.undo()
            raise

    def ask_again(self) -> None:
        """Answer the last question again; its old answer stays if no new one comes."""
        old = self.session.retry()
        if old is None:
            raise UsageError("there is no question to repeat", "type a question")
        try:
            self._answer()
        finally:
            if self.session.conversation.unanswered:
                for message in old:
                    self.session.add(message)

    def request(self) -> Request:
        """Return the request of the next answer. A switch in the question itself wins over one that /think or a flag
        set. Before the first question, the request has an empty one."""
        conversation = self.session.conversation
        messages = conversation.messages or (Message("user", ""),)
        question = messages[-1:]
        settings = self.settings if soft_switch(question) is None else replace(self.settings, think=None)
        return settings.request(messages, system=conversation.system)

    def change(self, **values: Any) -> None:
        """Change settings, and log the change."""
        self.settings = replace(self.settings, **values)
        self.session.set_settings(values)

    def _answer(self) -> None:
        self.printer.hide_thinking = self.settings.hide_thinking
        try:
            with self.keys:
                came = receive(self.model, self.request(), self._show, hurry=self.keys.hurry)
        finally:
            self.printer.finish()
        self._keep(came)

    def _show(self, event: Event) -> None:
        self.printer.show(event)
        match event:
            case Thinking(text):
                self.session.partial(thinking=text)
            case Text(text):
                self.session.partial(content=text)

    def _keep(self, came: Answer) -> None:
        self.last = came
        stopped = came.finished is None
        if came.finished or not came.empty:
            self.session.add(came.message(), stopped=stopped)
        if stopped:
            self.printer.note("(stopped)" if not came.empty else "(stopped before any text; /retry asks again)")
        if came.cut:
            self.printer.aside.line(f"warning: {LENGTH_WARNING.replace('--max-tokens', '/set max_tokens N')}")
        if self.settings.stats:
            self.printer.note(stats_line(came, self.model))


def _is_question(line: str) -> bool:
    """Return whether a line is a question: `/no_think How are you?` has a switch in it; `/no_think` alone is a
    command."""
    word, _, rest = line.partition(" ")
    return word in ("/think", "/no_think") and bool(rest.strip())

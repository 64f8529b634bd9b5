"""How a process ended, in words for a message and a label for a metric."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from localqwen.machine import posix

#: The folders of a path: where somebody compiled a library is nobody else's business, and says nothing to a user.
_FOLDERS = re.compile(r"(?<!\w)/(?:[^\s/]+/)+")


@dataclass(frozen=True)
class Death:
    """The end of a process. `code` is its exit code, negative for a signal's number; `reason` says why the parent ended
    it, "" where it did not; `last_words` are the last lines that it wrote to standard error."""

    code: int
    reason: str = ""
    last_words: tuple[str, ...] = ()

    @property
    def cause(self) -> str:
        """Return what ended it, in one word where there is one: `SIGABRT`, `exit code 3`, or the parent's reason."""
        if self.reason:
            return self.reason
        if self.code < 0:
            return _signal_name(-self.code)
        return f"exit code {self.code}"

    @property
    def text(self) -> str:
        """Return what ended it, with what is known of the reason."""
        if self.reason:
            return self.reason
        if posix.was_killed(self.code):
            return f"ended by {self.cause}, as the system does with a process that needs more memory than there is"
        said = f" ({_FOLDERS.sub('', self.last_words[-1])})" if self.last_words else ""
        return f"ended by {self.cause}{said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"

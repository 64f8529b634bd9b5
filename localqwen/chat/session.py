"""A conversation that outlives its program: every change is written down as it comes.

A log is a file of JSON lines: a header, then one record per change, appended and flushed at once, so that a killed chat
loses nothing but the line it was writing. Reading a log is replaying its records. It knows nothing of engines and
terminals.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from localqwen.chat.conversation import Conversation, Record, apply
from localqwen.chat.messages import Message
from localqwen.errors import SessionError, UsageError
from localqwen.machine import posix

FORMAT = "localqwen-conversation"
VERSION = 1
#: Seconds between two records of an answer that is still streaming.
_PARTIAL_EVERY = 1.0


def read(path: Path) -> Conversation:
    """Return the conversation of a log. Raise SessionError for a file that is missing, of another kind or damaged
    before its last line.

    An answer that was cut off by the end of the log becomes the last message: what came is kept.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        raise SessionError(f"cannot read {path}: {exc.strerror}", "localqwen chat starts a new conversation") from exc
    header = _header(lines[0], path)
    conversation = Conversation(str(header.get("model", "")), str(header.get("created", "")))
    for number, line in enumerate(lines[1:-1], 2):  # the last is empty, or torn by a crash
        try:
            conversation = apply(conversation, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as exc:
            raise SessionError(f"line {number} of {path} is damaged", "repair or delete that line") from exc
    if conversation.partial is None:
        return conversation
    return replace(conversation, messages=(*conversation.messages, conversation.partial), partial=None)


def _header(line: bytes, path: Path) -> Record:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SessionError(f"{path} is not a conversation of localqwen", "list them with /resume in localqwen chat")
    if header.get("version") != VERSION:
        found = header.get("version")
        raise SessionError(f"{path} has format version {found}, this localqwen reads {VERSION}", "update localqwen")
    return header


class Session:
    """The conversation of a running chat and its log. The file appears with the first message; one chat at a time owns
    a log (a second one gets SessionError), and the system takes the lock back from a chat that was killed.

    Where the log cannot be written (a full disk) the conversation goes on without one and `failure` says why.
    """

    def __init__(self, conversation: Conversation, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.conversation = conversation
        self.path = path
        self.failure: SessionError | None = None
        self._clock = clock
        self._file: int | None = None
        self._pending = _nothing()
        self._pending_since = 0.0

    @classmethod
    def new(cls, model: str, folder: Path, *, system: str = "", clock: Callable[[], float] = time.monotonic) -> Session:
        """Return a session without a message; its log is written with the first one."""
        now = datetime.now(UTC)
        path = folder / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}.jsonl"
        return cls(Conversation(model, now.isoformat(timespec="seconds"), system=system), path, clock=clock)

    @classmethod
    def resume(cls, path: Path, *, clock: Callable[[], float] = time.monotonic) -> Session:
        """Go on with a log. Raises SessionError where it cannot be read or another chat owns it."""
        session = cls(read(path), path, clock=clock)
        session._file = _open_locked(path)
        try:
            session.conversation = read(path)  # again: its owner may have written between reading and locking
        except SessionError:
            session.close()
            raise
        _drop_torn_line(session._file)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what an interrupted answer left, and free the log for other chats."""
        self._write_pending()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, message: Message, *, stopped: bool = False) -> None:
        """Add a message; `stopped` says that the user ended the answer."""
        self.create_log()
        self._pending = _nothing()
        record: dict[str, Any] = {"type": "message", "message": message.to_json(), "time": _now()}
        self._record({**record, "stopped": True} if stopped else record)

    def partial(self, *, thinking: str = "", content: str = "") -> None:
        """Add a part of the answer that streams, so that a killed chat keeps it; written about once per second."""
        if not any(self._pending.values()):
            self._pending_since = self._clock()
        self._pending["thinking"] += thinking
        self._pending["content"] += content
        if self._clock() - self._pending_since >= _PARTIAL_EVERY:
            self._write_pending()

    def _write_pending(self) -> None:
        if any(self._pending.values()):
            record = {"type": "partial", **{name: text for name, text in self._pending.items() if text}}
            self._pending = _nothing()
            self._record(record)

    def undo(self) -> str | None:
        """Take back the last question and its answer. Return the question, None where there is none."""
        question = self.conversation.last_question
        if question < 0:
            return None
        text = self.conversation.messages[question].content
        self._pending = _nothing()
        self._record({"type": "undo"})
        return text

    def retry(self) -> tuple[Message, ...] | None:
        """Take back the last answer. Return its messages, None where nothing was asked yet."""
        question = self.conversation.last_question
        if question < 0:
            return None
        dropped = self.conversation.messages[question + 1 :]
        self._pending = _nothing()
        self._record({"type": "retry"})
        return dropped

    def clear(self) -> None:
        """Forget every message."""
        self._record({"type": "clear"})

    def set_system(self, text: str) -> None:
        """Change the system prompt."""
        self._record({"type": "system", "text": text})

    def set_settings(self, values: Mapping[str, Any]) -> None:
        """Change settings: `values` are merged over the earlier ones; None stands for "as by default"."""
        if values:
            self._record({"type": "settings", "values": dict(values)})

    def set_model(self, model: str) -> None:
        """Go on with another model."""
        self._record({"type": "model", "model": model})

    def set_name(self, name: str) -> None:
        """Give the conversation a name."""
        self._record({"type": "name", "name": name})

    def _record(self, record: Record) -> None:
        """Before the first message there is no log, and what is set then is written with its header."""
        self.conversation = apply(self.conversation, record)
        self._append(record)

    def create_log(self) -> None:
        """Write a file with a header and what was set so far, unless there is one already."""
        if self._file is not None or self.failure:
            return
        try:
            private_folder(self.path.parent)
            self._file = _open_locked(self.path, create=True)
        except SessionError as error:
            self.failure = error
        now = self.conversation
        self._append({"format": FORMAT, "version": VERSION, "model": now.model, "created": now.created})
        if now.system:
            self._append({"type": "system", "text": now.system})
        if now.settings:
            self._append({"type": "settings", "values": dict(now.settings)})

    def _append(self, record: Record) -> None:
        if self._file is None:
            return
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)  # no half line stays
            self.failure = SessionError(f"cannot write {self.path}: {exc.strerror}", "free some space on that disk")
            self._close_file()


def _open_locked(path: Path, *, create: bool = False) -> int:
    try:
        file = os.open(path, posix.binary_flags(os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)), 0o600)
    except OSError as exc:
        raise SessionError(f"cannot write {path}: {exc.strerror}", "check that folder's permissions") from exc
    try:
        posix.lock_file(file)
    except OSError as exc:
        os.close(file)
        raise SessionError(
            "another chat has this conversation open", "leave that chat first, or start a new one: localqwen chat"
        ) from exc
    return file


def _drop_torn_line(file: int) -> None:
    """A crash may have left half a line at the end; the next record must begin on a line of its own.

    `file` was just opened, so that it is read from its beginning.
    """
    size = os.fstat(file).st_size
    tail = os.read(file, size)
    if not tail.endswith(b"\n"):
        os.ftruncate(file, tail.rfind(b"\n") + 1)


def private_folder(folder: Path) -> None:
    """Make a folder that its owner alone can read. Raise SessionError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as exc:
        raise SessionError(
            f"cannot write {folder}: {exc.strerror}", "LOCALQWEN_HOME moves all files elsewhere"
        ) from exc


def _nothing() -> dict[str, str]:
    return {"thinking": "", "content": ""}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

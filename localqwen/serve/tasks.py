"""What clients wait for, as the server keeps it while a model's process works on it. All of it lives in the event loop.

A mailbox grows with its answer: a slow reader costs memory, and never keeps a model waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from localqwen.chat.messages import Event, Finished, Request, Started
from localqwen.errors import LocalqwenError
from localqwen.model_process import values
from localqwen.model_process.frames import BrokenMessage, Message
from localqwen.model_process.process import OpenedModel
from localqwen.serve.api import ParsedRequest

T = TypeVar("T")


class Task(ABC):
    """Something that the process of a model does for a client. `model` is the resolved name.

    `given` says whether a process has it, `stage` what of its preparation is going on ("" before and after), `begun`
    whether its answer has begun, `blamed` whether it is why its process is being ended; `deaths` counts the processes
    that ended before it was done."""

    takes_a_place = True

    def __init__(self, model: str, number: str = "") -> None:
        self.model = model
        self.id = number or secrets.token_hex(12)
        self.given = self.begun = self.blamed = False
        self.stage = ""
        self.deaths = 0

    @property
    def running(self) -> bool:
        """Return whether the process works on it: if that dies now, this may be why."""
        return self.begun or bool(self.stage) or self.blamed

    def start_again(self) -> None:
        """Forget what an ended process did of it."""
        self.given, self.stage = False, ""

    @abstractmethod
    def message(self) -> Message | None:
        """Return what the process is told; None where there is nothing but to load the model."""

    @abstractmethod
    def fail(self, error: LocalqwenError) -> None:
        """Let the client have an error. Nothing follows."""

    def opened(self, model: OpenedModel) -> bool:
        """Learn that the model is open; return whether that was all."""
        return False

    @property
    def digest(self) -> str:
        """Return the same for the same request, and nothing else."""
        message = {key: value for key, value in (self.message() or {}).items() if value != self.id}
        text = json.dumps(message, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class JobEvent:
    """An event of answer `index`, or the error that ends the request."""

    __slots__ = ("index", "what")

    def __init__(self, what: Event | LocalqwenError, index: int = 0) -> None:
        self.what, self.index = what, index


class Mailbox:
    """The events of one request that were not taken yet."""

    def __init__(self) -> None:
        self._items: list[JobEvent] = []
        self._ready = asyncio.Event()

    def put(self, event: JobEvent) -> None:
        """Add an event and wake the reader."""
        self._items.append(event)
        self._ready.set()

    async def take(self) -> list[JobEvent]:
        """Return all events that have come; wait for the first."""
        await self._ready.wait()
        self._ready.clear()
        items, self._items = self._items, []
        return items


class Job(Task):
    """A request for answers; its events come into its `mailbox`."""

    def __init__(self, parsed: ParsedRequest, model: str, number: str = "") -> None:
        super().__init__(model, number)
        self.parsed = parsed
        self.mailbox = Mailbox()
        self._left = parsed.answers

    def message(self) -> Message:
        """Return the request and how many answers it wants."""
        request = values.request_to_json(self.parsed.request)
        return {"answer": self.id, "request": request, "answers": self.parsed.answers}

    def take(self, event: Event, index: int) -> bool:
        """Pass an event on; return whether it was the last. Raise BrokenMessage for an answer that nobody requested."""
        if not 0 <= index < self.parsed.answers:
            raise BrokenMessage(f"an event of answer {index}")
        self.begun = self.begun or isinstance(event, Started)
        self._left -= isinstance(event, Finished)
        self.mailbox.put(JobEvent(event, index))
        return self._left <= 0

    def fail(self, error: LocalqwenError) -> None:
        """Put an error into the mailbox. Nothing follows."""
        self.mailbox.put(JobEvent(error))


class Waiting(Task, Generic[T]):
    """A task whose client waits for one value, in `answer`."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def fail(self, error: LocalqwenError) -> None:
        """Let the client have an error in place of its value."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def finish(self, value: T) -> None:
        """Give the client its value."""
        if not self.answer.done():  # its client may have gone
            self.answer.set_result(value)


class Counting(Waiting[int]):
    """Counts the tokens of a request's prompt."""

    def __init__(self, model: str, request: Request) -> None:
        super().__init__(model)
        self._request = request

    def message(self) -> Message:
        """Return the request whose prompt is counted."""
        return {"count": self.id, "request": values.request_to_json(self._request)}


class Loading(Waiting[OpenedModel]):
    """Waits until a model is loaded."""

    takes_a_place = False

    def message(self) -> None:
        """Return None: a loaded model is told nothing."""

    def opened(self, model: OpenedModel) -> bool:
        """Give the client the model; that was all."""
        self.finish(model)
        return True

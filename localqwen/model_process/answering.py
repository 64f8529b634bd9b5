"""The child's work: it answers the requests of one loaded model, in the thread that opened the engine.

Another thread receives messages. What comes of a step goes out as one message, however many answers it is of. With
nothing to do the thread sleeps on its inbox, or prefills ahead.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from localqwen.chat.messages import Event, Finished
from localqwen.chat.model_info import LoadedModel
from localqwen.chat.prefill_ahead import EndedAnswer
from localqwen.chat.reply import Reply
from localqwen.chat.scheduler import Scheduler, Ticket
from localqwen.errors import LocalqwenError
from localqwen.model_process import values
from localqwen.model_process.frames import Message
from localqwen.model_process.preparing import Preparing

#: Seconds without work before the next turn is prefilled ahead: a program that continues at once never waits for it.
_PATIENCE = 0.4


@dataclass(eq=False)
class _Request(Ticket):
    """A request; `left` of its answers have not finished."""

    left: int = 1


class Answering:
    """Answers the requests of one loaded model. `send` takes messages from any thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        send: Callable[[Message], None],
        *,
        prefill_ahead: bool = True,
    ) -> None:
        self._send = send
        self._worked = time.monotonic()
        self._scheduler = Scheduler[_Request](loaded, self._emit, prefill_ahead=prefill_ahead)
        self._preparing = Preparing(loaded.info)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[str, _Request] = {}
        self._outgoing: list[list[Any]] = []
        self._next_turns = itertools.count()
        self._closed = False

    # In the thread that receives.

    def receive(self, message: Message) -> None:
        """Do what a message says. Raise KeyError, TypeError or ValueError for one that says nothing."""
        match message:
            case {"answer": str(number), "request": request, "answers": int(answers)}:
                ticket = self._tickets[number] = _Request(id=number, left=answers)
                self._preparing.replies(request, answers, partial(self._stage, number), partial(self._prepared, ticket))
            case {"count": str(number), "request": request}:
                self._preparing.count(request, partial(self._stage, number), partial(self._counted, number))
            case {"cancel": str(number)}:
                self._inbox.put(partial(self._cancel, number))
            case {"end_thinking": str(number)}:
                self._inbox.put(partial(self._end_thinking, number))
            case {"ping": int(number)}:
                self._send({"pong": number})
            case _:
                raise ValueError(f"a message that is not known: {sorted(message)}")

    def close(self) -> None:
        """Let `run` return after the present step."""
        self._inbox.put(self._close)

    # In the preparing threads.

    def _stage(self, number: str, name: str) -> None:
        self._send({"stage": [number, name]})

    def _prepared(self, ticket: _Request, outcome: list[Reply] | LocalqwenError) -> None:
        self._inbox.put(partial(self._begin, ticket, outcome))

    def _counted(self, number: str, outcome: int | LocalqwenError) -> None:
        if isinstance(outcome, LocalqwenError):
            self._send({"events": [[number, 0, values.error_to_json(outcome)]]})
        else:
            self._send({"counted": [number, outcome]})

    def _know_next_turn(self, ended: EndedAnswer, outcome: tuple[int, ...] | LocalqwenError) -> None:
        self._inbox.put(partial(self._add_next_turn, ended, outcome))

    # In the engine's thread.

    def run(self) -> None:
        """Answer until `close`; then close the engine. Raise EngineError where the engine failed."""
        try:
            while not self._closed:
                self._handle_messages()
                self._work()
                self._flush()
        finally:
            self._preparing.close()
            self._scheduler.close()

    def _close(self) -> None:
        self._closed = True

    def _handle_messages(self) -> None:
        """Handle every message in the inbox; sleep while there is nothing to compute."""
        try:
            wait = self._wait()
            handle = self._inbox.get_nowait() if wait == 0 else self._inbox.get(timeout=wait)
            while True:
                handle()
                handle = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _wait(self) -> float | None:
        """Return for how many seconds nothing needs to be computed; None if only a message brings work."""
        if self._scheduler.busy:
            return 0
        return max(0, self._worked + _PATIENCE - time.monotonic()) if self._scheduler.can_prefill_ahead else None

    def _work(self) -> None:
        self._scheduler.admit()
        self._flush()  # if the step ends this process, the parent knows what had begun
        if self._scheduler.running:
            self._scheduler.step()
            self._worked = time.monotonic()
        elif self._inbox.empty() and self._scheduler.can_prefill_ahead and self._wait() == 0:
            self._prefill_ahead()

    def _prefill_ahead(self) -> None:
        """Let the next turns of ended answers be prepared, and compute a slice of one that is."""
        for ended in self._scheduler.take_ended():
            name = f"next turn {next(self._next_turns)}"
            self._preparing.next_turn(ended, partial(self._stage, name), partial(self._know_next_turn, ended))
        self._scheduler.compute_pending()

    def _add_next_turn(self, ended: EndedAnswer, outcome: tuple[int, ...] | LocalqwenError) -> None:
        # A template that allows no further turn is no failure: there is nothing to compute.
        self._scheduler.add_pending(ended, () if isinstance(outcome, LocalqwenError) else outcome)

    def _flush(self) -> None:
        if self._outgoing:
            events, self._outgoing = self._outgoing, []
            self._send({"events": events})

    def _emit(self, ticket: _Request, index: int, what: Event | LocalqwenError) -> None:
        if isinstance(what, LocalqwenError):
            ticket.left = 0
            self._outgoing.append([ticket.id, index, values.error_to_json(what)])
        else:
            ticket.left -= isinstance(what, Finished)
            self._outgoing.append([ticket.id, index, values.event_to_json(what)])
        if not ticket.left:
            self._tickets.pop(ticket.id, None)

    def _begin(self, ticket: _Request, outcome: list[Reply] | LocalqwenError) -> None:
        if ticket.cancelled:
            return
        if isinstance(outcome, LocalqwenError):
            self._emit(ticket, 0, outcome)
        else:
            self._scheduler.add(ticket, outcome)

    def _cancel(self, number: str) -> None:
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            self._scheduler.cancel(ticket)

    def _end_thinking(self, number: str) -> None:
        self._send({"ended_thinking": [number, self._scheduler.end_thinking(number)]})

"""Many answers at once on one engine: which waits, which runs, which is cancelled, and what is computed while idle.

`Scheduler` drives a `Reply` for every answer: it starts the runs that a reply describes, feeds it what the engine
gives, starts it again where the reply says so. It owns no thread and does no I/O: everything here happens in the
engine's thread, and events go out through a callback. The server and the Python API drive one each per loaded model.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from localqwen.chat.answer import AnswerAssembler
from localqwen.chat.messages import Event, Message, PrefillProgress, Request
from localqwen.chat.model_info import LoadedModel
from localqwen.chat.prefill_ahead import EndedAnswer, NextTurns, PendingPrefix, next_turn
from localqwen.chat.reply import Reply, RunSpec
from localqwen.engines.engine import Run, TokenOutput
from localqwen.errors import LocalqwenError, TemplateError, UsageError


@dataclass(eq=False, kw_only=True)
class Ticket:
    """What one caller waits for: one answer, or several to the same prompt. They are cancelled together, and the error
    of one ends all. Once `cancelled`, nothing more of it goes out."""

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    cancelled: bool = False


T = TypeVar("T", bound=Ticket)
#: Takes an event of answer number `index` of a ticket, or the error that ends the ticket.
Emit = Callable[[T, int, Event | LocalqwenError], None]


@dataclass(eq=False)
class _Answering(Generic[T]):
    """One answer: waiting while it has no `run`, live with one. `run` was started as `spec`."""

    ticket: T
    index: int
    reply: Reply
    spec: RunSpec
    run: Run | None = None
    shown: AnswerAssembler = field(default_factory=AnswerAssembler)


class Scheduler(Generic[T]):
    """Drives the answers of one loaded model.

    `emit` is called with every event, and with the error that ends a ticket. With `progress`, a step that shows
    nothing of an answer emits a PrefillProgress. With `prefill_ahead`, what an ended conversation will continue with
    can be computed while nobody waits.
    """

    def __init__(
        self, loaded: LoadedModel, emit: Emit[T], *, progress: bool = False, prefill_ahead: bool = True
    ) -> None:
        self.loaded, self.engine, self.info = loaded, loaded.engine, loaded.info
        self._emit = emit
        self._progress = progress
        self._prefill_ahead = prefill_ahead
        self._waiting: deque[_Answering[T]] = deque()
        self._live: dict[Run, _Answering[T]] = {}
        self._next_turns = NextTurns(self.engine, self.info.context_length)

    @property
    def running(self) -> int:
        """Return how many answers the engine computes."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Return how many answers wait for a free run."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Return whether any answer runs or waits."""
        return bool(self._live or self._waiting)

    @property
    def tickets(self) -> set[T]:
        """Return the tickets with an answer that runs or waits."""
        return {answering.ticket for answering in (*self._waiting, *self._live.values())}

    def add(self, ticket: T, replies: Sequence[Reply]) -> None:
        """Let the answers of a ticket wait for their turn."""
        self._waiting.extend(_Answering(ticket, index, reply, reply.run) for index, reply in enumerate(replies))

    def cancel(self, ticket: T) -> None:
        """Free the runs of a ticket now. Nothing more of it is emitted."""
        ticket.cancelled = True
        self._waiting = deque(answering for answering in self._waiting if answering.ticket is not ticket)
        for answering in [answering for answering in self._live.values() if answering.ticket is ticket]:
            self._stop(answering)

    def end_thinking(self, ticket_id: str) -> bool:
        """End the thinking of the running answers of a ticket. Return whether there is one."""
        found = [answering for answering in self._live.values() if answering.ticket.id == ticket_id]
        for answering in found:
            answering.reply.end_thinking()
        return bool(found)

    def admit(self) -> None:
        """Start what waits, as far as the engine has room."""
        for answering in list(self._waiting):
            if len(self._live) >= self.engine.max_runs:
                return
            if answering in self._waiting and self._may_start(answering):  # an error of its ticket takes it away
                self._waiting.remove(answering)
                self._begin(answering)

    def _may_start(self, answering: _Answering[T]) -> bool:
        """Return whether no answer to the same prompt is still reading it: once read, the second takes it over."""
        first = next((live for live in self._live.values() if live.ticket is answering.ticket), None)
        return first is None or (first.run is not None and first.run.prefilled >= first.run.prompt_tokens)

    def _begin(self, answering: _Answering[T]) -> None:
        run = self._start(answering)
        if run is not None:
            self._next_turns.forget_continued(run.prompt)
            self._show(answering, answering.reply.begin(run))

    def _start(self, answering: _Answering[T]) -> Run | None:
        try:
            run = answering.reply.run.start(self.engine)
        except LocalqwenError as error:
            self._fail(answering.ticket, error)
            return None
        answering.run, answering.spec = run, answering.reply.run
        self._live[run] = answering
        return run

    def step(self) -> None:
        """Compute one step of the engine for all running answers. Raise EngineError where the engine failed."""
        outputs = self.engine.step()
        without = self._live.keys() - {run for run, _ in outputs} if self._progress else ()
        for run, output in outputs:
            if run in self._live:
                self._advance(self._live[run], run, output)
        for run in without:
            self._show_progress(self._live.get(run), run)

    def _advance(self, answering: _Answering[T], run: Run, output: TokenOutput) -> None:
        try:
            events = answering.reply.feed(output)
        except LocalqwenError as error:  # of this answer alone: the engine is well
            self._fail(answering.ticket, error)
            return
        self._show(answering, events)
        if not events and self._progress:
            self._show_progress(answering, run)
        if answering.reply.finished:
            self._end(answering)
        elif answering.reply.run is not answering.spec and not answering.ticket.cancelled:
            self._stop(answering)
            self._start(answering)

    def _end(self, answering: _Answering[T]) -> None:
        self._stop(answering)
        if self._prefill_ahead and not answering.ticket.cancelled and answering.index == 0:
            reply = answering.reply
            message = answering.shown.answer().message()
            self._next_turns.note_ended(EndedAnswer(reply.request, message, reply.thinking, reply.prompt))

    def _show(self, answering: _Answering[T], events: Sequence[Event]) -> None:
        for event in events:
            if self._prefill_ahead:
                answering.shown.add(event)
            if not answering.ticket.cancelled:
                self._emit(answering.ticket, answering.index, event)

    def _show_progress(self, answering: _Answering[T] | None, run: Run) -> None:
        if answering is not None:
            self._show(answering, [PrefillProgress(run.prefilled, run.prompt_tokens)])

    def _stop(self, answering: _Answering[T]) -> None:
        if answering.run is not None:
            self.engine.cancel(answering.run)
            self._live.pop(answering.run, None)

    def _fail(self, ticket: T, error: LocalqwenError) -> None:
        if not ticket.cancelled:
            self._emit(ticket, 0, error)
        self.cancel(ticket)

    def fail(self, error: LocalqwenError) -> None:
        """End every ticket with an error."""
        for ticket in self.tickets:
            self._fail(ticket, error)

    def fail_waiting(self, error: LocalqwenError) -> None:
        """End the tickets of which nothing has begun with an error."""
        begun = {answering.ticket for answering in self._live.values()}
        for ticket in self.tickets - begun:
            self._fail(ticket, error)

    @property
    def can_prefill_ahead(self) -> bool:
        """Return whether an idle engine has a next turn to compute."""
        return bool(self._next_turns.ended or self._next_turns.pending)

    @property
    def pending(self) -> int:
        """Return how many next turns are known and not yet computed."""
        return self._next_turns.pending

    def prefill_ahead(self) -> None:
        """Compute a slice of what the next turns begin with, the latest conversation first. It leaves no run behind and
        takes no longer than a newcomer can wait. Does nothing while an answer runs. Raise EngineError.

        Where rendering and tokenizing must not happen in this thread, the caller calls `take_ended`, `add_pending` and
        `compute_pending` itself."""
        for ended in self.take_ended():
            try:
                ids = next_turn(ended.request, ended.message, self.info, thinking=ended.thinking)
            except (TemplateError, UsageError):  # a template that allows no further turn: there is nothing to compute
                ids = ()
            self.add_pending(ended, ids)
        self.compute_pending()

    def take_ended(self) -> list[EndedAnswer]:
        """Return the answers that have ended and may be continued. `prefill_ahead.next_turn` says, in any thread, with
        what; `add_pending` takes that back."""
        return self._next_turns.take_ended()

    def add_pending(self, ended: EndedAnswer, ids: tuple[int, ...]) -> None:
        """Let the next turn of an answer be computed, unless its conversation has gone on or lost its slot. `ids` is
        what `next_turn` returned, or () where it raised."""
        self._next_turns.add(ended, ids)

    def compute_pending(self) -> None:
        """Compute a slice of the latest next turn that is known, unless an answer runs or waits. Raise EngineError."""
        if not self.busy:
            self._next_turns.compute_latest()

    def next_turn(self, request: Request, answer: Message, *, thinking: bool) -> PendingPrefix | None:
        """Return what every turn after this answer begins with; None where nothing is known or it does not fit the
        context. Raise TemplateError."""
        return self._next_turns.pending_prefix(next_turn(request, answer, self.info, thinking=thinking))

    def compute_prefix(self, pending: PendingPrefix) -> bool:
        """Compute a slice of a prefix, unless an answer runs or waits: return whether none did. Raise EngineError."""
        if self.busy:
            return False
        self._next_turns.compute_slice(pending)
        return True

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


def events_of(loaded: LoadedModel, request: Request) -> Generator[Event, None, None]:
    """Yield the events of one answer, computed in the calling thread, which must be the engine's. Closing the generator
    cancels the answer. Raise what stands against the request, and EngineError where the engine fails."""
    ticket, came = Ticket(), deque[Event | LocalqwenError]()
    scheduler = Scheduler[Ticket](loaded, lambda _, __, what: came.append(what), progress=True, prefill_ahead=False)
    scheduler.add(ticket, [Reply(request, loaded.info)])
    try:
        while scheduler.busy or came:
            if not came:
                scheduler.step() if scheduler.running else scheduler.admit()
            elif isinstance(what := came.popleft(), LocalqwenError):
                raise what
            else:
                yield what
    finally:
        scheduler.cancel(ticket)

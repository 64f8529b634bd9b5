"""The answers of one model on its engine: waiting, running, prepared. No thread, no HTTP; the worker drives it.

Everything here happens in the engine's thread. Events go out through `deliver` as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from localqwen.chat.messages import Event, Finished, Message, Text, Thinking, ToolCall
from localqwen.chat.prefill_ahead import Ahead, ReadingAhead, next_turn
from localqwen.chat.prompts import ModelFacts
from localqwen.chat.reply import Reply, RunSpec
from localqwen.engines.engine import Engine, Run
from localqwen.engines.scheduling import common_prefix
from localqwen.errors import LocalqwenError, TemplateError
from localqwen.serve.job import Delivery, Job

#: Ids at the end of a prompt that its continuation may not have: an empty think block, the first of a user's text.
_TAIL = 8


@dataclass(frozen=True)
class Opened:
    """A model ready to answer."""

    engine: Engine
    facts: ModelFacts


@dataclass(eq=False)
class _Answer:
    """One of the answers of a job. `shown` is what came so far, for preparing the next turn."""

    job: Job
    index: int
    reply: Reply
    spec: RunSpec
    run: Run | None = None
    shown: list[Event] = field(default_factory=list)

    def message(self) -> Message:
        thinking = "".join(event.text for event in self.shown if isinstance(event, Thinking))
        text = "".join(event.text for event in self.shown if isinstance(event, Text))
        calls = tuple(event for event in self.shown if isinstance(event, ToolCall))
        return Message("assistant", text, thinking or None, calls)


class Runs:
    """`deliver` is called with every event and with the error that ends a job."""

    def __init__(self, opened: Opened, deliver: Callable[[Job, Delivery], None], *, prepare: bool = True) -> None:
        self.opened, self.engine, self.facts = opened, opened.engine, opened.facts
        self._deliver = deliver
        self._prepare = prepare
        self._waiting: deque[_Answer] = deque()
        self._live: dict[Run, _Answer] = {}
        self._ended: deque[_Answer] = deque(maxlen=self.engine.max_runs)  # whose next turn may be prepared
        self._ahead: deque[Ahead] = deque(maxlen=self.engine.max_runs)  # the last is read first
        self._reading = ReadingAhead(self.engine)

    @property
    def running(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._live or self._waiting)

    @property
    def jobs(self) -> set[Job]:
        return {answer.job for answer in (*self._waiting, *self._live.values())}

    def add(self, job: Job, replies: Sequence[Reply]) -> None:
        self._waiting.extend(_Answer(job, index, reply, reply.run) for index, reply in enumerate(replies))

    def cancel(self, job: Job) -> None:
        """Free its runs now; nothing more of it is delivered."""
        job.cancelled = True
        self._waiting = deque(answer for answer in self._waiting if answer.job is not job)
        for answer in [answer for answer in self._live.values() if answer.job is job]:
            self._stop(answer)

    def end_thinking(self, job_id: str) -> bool:
        """Whether there is such an answer."""
        found = [answer for answer in self._live.values() if answer.job.id == job_id]
        for answer in found:
            answer.reply.end_thinking()
        return bool(found)

    def admit(self) -> None:
        """Start what waits, as far as the engine has room."""
        for answer in list(self._waiting):
            if len(self._live) >= self.engine.max_runs:
                return
            if self._may_start(answer):
                self._waiting.remove(answer)
                self._begin(answer)

    def _may_start(self, answer: _Answer) -> bool:
        """A second answer to the same prompt waits until the first has read it, and takes it over."""
        first = next((live for live in self._live.values() if live.job is answer.job), None)
        return first is None or (first.run is not None and first.run.prefilled >= first.run.prompt_tokens)

    def _begin(self, answer: _Answer) -> None:
        run = self._start(answer)
        if run is not None:
            self._forget_prepared(run.prompt)
            self._show(answer, answer.reply.begin(run))

    def _forget_prepared(self, prompt: Sequence[int]) -> None:
        """This conversation has gone on: reading its last turn now would push out what the new one holds."""
        self._ahead = deque((each for each in self._ahead if not _continued(each.ids, prompt)), self._ahead.maxlen)
        still = (answer for answer in self._ended if not _continued(answer.reply.prompt, prompt))
        self._ended = deque(still, self._ended.maxlen)

    def _start(self, answer: _Answer) -> Run | None:
        try:
            run = answer.reply.run.start(self.engine)
        except LocalqwenError as error:
            self._fail(answer.job, error)
            return None
        answer.run, answer.spec = run, answer.reply.run
        self._live[run] = answer
        return run

    def step(self) -> None:
        """One step of the engine for all that is live. Raises EngineError where the engine failed."""
        for run, piece in self.engine.step():
            answer = self._live.get(run)
            if answer is None:
                continue
            try:
                self._show(answer, answer.reply.feed(piece))
            except LocalqwenError as error:  # of this answer alone: the engine is well
                self._fail(answer.job, error)
                continue
            if answer.reply.finished:
                self._end(answer)
            elif answer.reply.run is not answer.spec and not answer.job.cancelled:
                self._stop(answer)
                self._start(answer)

    def _end(self, answer: _Answer) -> None:
        self._stop(answer)
        if self._prepare and not answer.job.cancelled and answer.index == 0:
            self._ended.append(answer)

    def _show(self, answer: _Answer, events: Sequence[Event]) -> None:
        for event in events:
            if not isinstance(event, Finished):
                answer.shown.append(event)
            if not answer.job.cancelled:
                self._deliver(answer.job, Delivery(event, answer.index))

    def _stop(self, answer: _Answer) -> None:
        if answer.run is not None:
            self.engine.cancel(answer.run)
            self._live.pop(answer.run, None)

    def _fail(self, job: Job, error: LocalqwenError) -> None:
        if not job.cancelled:
            self._deliver(job, Delivery(error))
        self.cancel(job)

    def fail(self, error: LocalqwenError) -> None:
        """End every job with an error."""
        for job in self.jobs:
            self._fail(job, error)

    def fail_waiting(self, error: LocalqwenError) -> None:
        """End the jobs of which nothing has begun."""
        begun = {answer.job for answer in self._live.values()}
        for job in self.jobs - begun:
            self._fail(job, error)

    @property
    def preparing(self) -> bool:
        """Whether an idle engine could read ahead."""
        return bool(self._ended or self._ahead)

    def read_ahead(self) -> None:
        """Read a slice of what the next turns will begin with, the latest conversation first. It leaves no run behind,
        and takes no longer than a newcomer can wait. Raises EngineError."""
        self._ahead.extend(self._next_turns())
        if not self._ahead:
            return
        self._reading.read(self._ahead[-1])
        if self._ahead[-1].done:
            self._ahead.pop()

    def _next_turns(self) -> Iterator[Ahead]:
        """Of the answers that have ended, with what the engine still holds of each."""
        while self._ended:
            answer = self._ended.popleft()
            reply = answer.reply
            try:
                ids = next_turn(reply.request, answer.message(), self.facts, thinking=reply.thinking)
            except TemplateError:  # a template that allows no further turn: there is nothing to read ahead
                continue
            if 0 < len(ids) < self.facts.context_length:
                ahead = self._reading.begin(ids)
                if _continued(reply.prompt, ids[: ahead.read]):  # else others have its slot: leave it to them
                    yield ahead

    def close(self) -> None:
        self.engine.close()


def _continued(earlier: Sequence[int], prompt: Sequence[int]) -> bool:
    return common_prefix(earlier, prompt) >= len(earlier) - _TAIL

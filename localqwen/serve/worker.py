"""The one thread that owns the engines: it opens them, steps them, and closes them.

Other threads put messages into its inbox; it answers through `post`, once per step for all requests, so that a step
costs the event loop one wake-up however many clients there are. With nothing to do it sleeps on the inbox.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from localqwen.chat.messages import Request
from localqwen.chat.reply import Reply
from localqwen.errors import Busy, EngineError, LocalqwenError
from localqwen.serve.job import Delivery, Job, Post
from localqwen.serve.model_pool import LoadedModel, Resident, Residents
from localqwen.serve.runs import Opened, Runs
from localqwen.serve.tokenizing import Encoder

#: Seconds without work before the next turns are read: a program that goes on at once shall not wait, a person reads.
_PATIENCE = 0.4
_STOPPING = "the server is stopping"


@dataclass(frozen=True)
class Limits:
    """`queue`: requests per model that may wait; `keep_alive`: seconds an idle model stays loaded; `prepare`: read the
    next turn's prompt while nobody waits."""

    queue: int = 64
    keep_alive: float = 300.0
    prepare: bool = True


class Worker:
    """`open_model` is called in the worker's thread with a resolved name and may raise any LocalqwenError."""

    def __init__(
        self,
        open_model: Callable[[str], Opened],
        post: Post,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_model = open_model
        self._post = post
        self._limits = limits
        self._clock = clock
        self._worked = clock()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._encoder = Encoder(self._inbox.put)
        self._models = Residents(self._open_runs, self._encoder.finish, limits.keep_alive, clock=clock)
        self._outgoing: list[tuple[Job, Delivery]] = []
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._live, name="localqwen-engine")
        self.on_death: Callable[[], None] = lambda: None

    # From any thread.

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        self._inbox.put(partial(self._accept, job))

    def cancel(self, job: Job) -> None:
        """Its runs are free before the next step; nothing of it is delivered afterwards."""
        self._inbox.put(partial(self._cancel, job))

    def end_thinking(self, job_id: str) -> Future[bool]:
        """Whether there is such an answer running."""
        answer: Future[bool] = Future()

        def end() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(any(model.runs.end_thinking(job_id) for model in self._models))

        self._inbox.put(end)
        return answer

    def load(self, name: str, *, keep_alive: float | None = None) -> Future[Opened]:
        """Have it in memory now, and `keep_alive` seconds from now on (None: as it was). The future carries the error
        of a model that cannot be opened."""
        answer: Future[Opened] = Future()
        self._inbox.put(partial(self._load, name, keep_alive, answer))
        return answer

    def count(self, name: str, request: Request) -> Future[int]:
        """How many tokens the prompt of that request has. The future carries the errors of opening and rendering."""
        answer: Future[int] = Future()
        self._inbox.put(partial(self._count, name, request, answer))
        return answer

    def unload(self, name: str) -> None:
        """As soon as it is idle."""
        self._inbox.put(partial(self._models.release, name))

    def loaded(self) -> list[LoadedModel]:
        """A snapshot; the numbers may be one step old."""
        return self._models.snapshot()

    def stop(self, grace: float) -> None:
        """Take no new work, give running answers `grace` seconds, then end. `join` waits for it."""
        self._inbox.put(partial(self._begin_stop, grace))

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    # In the worker's thread.

    def _live(self) -> None:
        try:
            while not self._ended():
                self._receive()
                self._work()
                self._flush()
        finally:
            self._close()

    def _ended(self) -> bool:
        if self._stop_at is None:
            return False
        return self._models.idle or self._clock() >= self._stop_at

    def _receive(self) -> None:
        """Everything in the inbox; sleeps where there is nothing to compute."""
        try:
            wait = self._wait()
            message = self._inbox.get_nowait() if wait == 0 else self._inbox.get(timeout=wait)
            while True:
                message()
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _wait(self) -> float | None:
        """Seconds that nothing needs to be computed; None for ever."""
        if any(model.runs.busy for model in self._models):
            return 0
        moments = [self._models.next_expiry()]
        moments += [self._worked + _PATIENCE] if any(model.runs.preparing for model in self._models) else []
        moments += [self._stop_at] if self._stop_at is not None else []
        soonest = min(moments)
        return None if soonest == float("inf") else max(0, soonest - self._clock())

    def _work(self) -> None:
        busy = False
        for model in self._models:
            model.runs.admit()
            if model.runs.running:
                busy, self._worked = True, self._clock()
                self._guarded(model, model.runs.step)
            self._models.touch(model)
        if not busy and self._inbox.empty():
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        patient = self._stop_at is None and self._clock() >= self._worked + _PATIENCE
        preparing = next((model for model in self._models if model.runs.preparing), None)
        if preparing is not None and patient:
            self._guarded(preparing, preparing.runs.read_ahead)
        else:
            self._models.unload_expired()

    def _guarded(self, model: Resident, step: Callable[[], None]) -> None:
        """An engine that fails takes its own answers with it, and nothing else; the next request opens it anew."""
        try:
            step()
        except LocalqwenError as error:
            model.runs.fail(error)
            self._models.unload(model)

    def _flush(self) -> None:
        if self._outgoing:
            batch, self._outgoing = self._outgoing, []
            self._post(batch)

    def _deliver(self, job: Job, delivery: Delivery) -> None:
        self._outgoing.append((job, delivery))

    def _accept(self, job: Job) -> None:
        if job.cancelled:
            return
        try:
            if self._stop_at is not None:
                raise Busy(_STOPPING)
            model = self._models.needed(job.model)
            self._check_queue(model)
        except LocalqwenError as error:
            self._deliver(job, Delivery(error))
            return
        model.keep_alive = self._limits.keep_alive if job.asked.keep_alive is None else job.asked.keep_alive
        self._encoder.replies(job, model, partial(self._encoded, model, job))

    def _check_queue(self, model: Resident) -> None:
        waiting = len(model.runs.jobs) + model.encoding
        free = model.runs.engine.max_runs
        if waiting >= free + self._limits.queue:
            raise Busy(
                f"{model.name} answers {free} requests at once and {self._limits.queue} wait already",
                "try again later; the server's --parallel and --max-queue set these numbers",
                retry_after=5,
            )

    def _encoded(self, model: Resident, job: Job, done: Future[list[Reply]]) -> None:
        self._models.touch(model)
        if job.cancelled:
            return
        problem = done.exception()
        if isinstance(problem, LocalqwenError):
            self._deliver(job, Delivery(problem))
        elif problem is not None:
            self._deliver(job, Delivery(EngineError(f"unexpected {type(problem).__name__}: {problem}")))
        elif self._stop_at is not None:
            self._deliver(job, Delivery(Busy(_STOPPING)))
        elif model not in self._models:  # its engine failed meanwhile
            self._accept(job)
        else:
            model.runs.add(job, done.result())

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        for model in self._models:
            model.runs.cancel(job)

    def _opened_for(self, name: str, answer: Future[Opened] | Future[int]) -> Resident | None:
        """None where nobody waits for the answer any more, or it already holds why the model cannot be opened."""
        if not answer.set_running_or_notify_cancel():
            return None
        try:
            return self._models.needed(name)
        except LocalqwenError as error:
            answer.set_exception(error)
            return None

    def _load(self, name: str, keep_alive: float | None, answer: Future[Opened]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        if keep_alive is not None:
            self._models.keep(model, keep_alive)
        answer.set_result(model.runs.opened)

    def _count(self, name: str, request: Request, answer: Future[int]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        self._encoder.count(request, model, partial(self._counted, model, answer))

    def _counted(self, model: Resident, answer: Future[int], done: Future[int]) -> None:
        self._models.touch(model)
        problem = done.exception()
        if problem is None:
            answer.set_result(done.result())
        else:
            answer.set_exception(problem)

    def _open_runs(self, name: str) -> Runs:
        self._flush()  # opening takes seconds; what is ready should not wait for it
        return Runs(self._open_model(name), self._deliver, prepare=self._limits.prepare)

    def _begin_stop(self, grace: float) -> None:
        self._stop_at = self._clock() + grace
        for model in self._models:
            model.runs.fail_waiting(Busy(_STOPPING))

    def _close(self) -> None:
        """Also where the thread dies of a bug: nobody waits for ever, and the server learns of it."""
        for model in self._models:
            model.runs.fail(Busy("the server has stopped"))
            self._models.unload(model)
        self._flush()
        self._encoder.close()
        if self._stop_at is None:
            self.on_death()

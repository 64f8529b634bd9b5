"""The one thread that owns the engines: it opens them, steps them, and closes them.

Other threads put messages into its inbox. It answers through `post`, once per step for all requests, so that a step
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

from localqwen.chat.messages import Event, Request
from localqwen.chat.model_info import LoadedModel
from localqwen.chat.reply import Reply
from localqwen.chat.scheduler import Scheduler
from localqwen.errors import Busy, EngineError, LocalqwenError
from localqwen.serve.channel import Job, JobEvent, Post
from localqwen.serve.model_pool import ModelPool, ModelStatus, PooledModel
from localqwen.serve.tokenizing import Tokenizing

#: Seconds without work before the next turn is prefilled ahead: a program that continues at once never waits for it.
_PATIENCE = 0.4
_STOPPING = "the server is stopping"


@dataclass(frozen=True)
class Limits:
    """The limits of a worker: `queue` requests may wait per model; an idle model stays loaded for `keep_alive` seconds;
    `prefill_ahead` computes the beginning of the next turn's prompt while nobody waits."""

    queue: int = 64
    keep_alive: float = 300.0
    prefill_ahead: bool = True


class Worker:
    """The thread of the engines. `open_model` is called in it with a resolved name and may raise any LocalqwenError."""

    def __init__(
        self,
        open_model: Callable[[str], LoadedModel],
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
        self._tokenizing = Tokenizing(self._inbox.put)
        self._models = ModelPool(self._open_scheduler, self._tokenizing.finish, limits.keep_alive, clock=clock)
        self._outgoing: list[tuple[Job, JobEvent]] = []
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._live, name="localqwen-engine")
        self.on_death: Callable[[], None] = lambda: None

    # From any thread.

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Answer a request. Its events go out through `post`."""
        self._inbox.put(partial(self._accept, job))

    def cancel(self, job: Job) -> None:
        """End a request: its runs are free before the next step, and no more events of it are sent."""
        self._inbox.put(partial(self._cancel, job))

    def end_thinking(self, job_id: str) -> Future[bool]:
        """End the thinking of the running answers of a request. The future says whether there is one."""
        answer: Future[bool] = Future()

        def end() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(any(model.scheduler.end_thinking(job_id) for model in self._models))

        self._inbox.put(end)
        return answer

    def load(self, name: str, *, keep_alive: float | None = None) -> Future[LoadedModel]:
        """Load a model now, and keep it for `keep_alive` seconds (None: its present setting). The future carries the
        error that prevents loading."""
        answer: Future[LoadedModel] = Future()
        self._inbox.put(partial(self._load, name, keep_alive, answer))
        return answer

    def count(self, name: str, request: Request) -> Future[int]:
        """Count the tokens of the prompt of a request. The future carries the errors of loading and rendering."""
        answer: Future[int] = Future()
        self._inbox.put(partial(self._count, name, request, answer))
        return answer

    def unload(self, name: str) -> None:
        """Unload a model as soon as it is idle."""
        self._inbox.put(partial(self._models.release, name))

    def loaded(self) -> list[ModelStatus]:
        """Return what each loaded model does. The numbers may be one step old."""
        return self._models.snapshot()

    def stop(self, grace: float) -> None:
        """Refuse new work, give running answers `grace` seconds, then end the thread; `join` waits for that."""
        self._inbox.put(partial(self._begin_stop, grace))

    def join(self) -> None:
        """Wait until the thread has ended."""
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
        """Handle every message in the inbox; sleep while there is nothing to compute."""
        try:
            wait = self._wait()
            message = self._inbox.get_nowait() if wait == 0 else self._inbox.get(timeout=wait)
            while True:
                message()
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _wait(self) -> float | None:
        """Return for how many seconds nothing needs to be computed; None if only a message brings work."""
        if any(model.scheduler.busy for model in self._models):
            return 0
        moments = [self._models.next_expiry()]
        ahead = any(model.scheduler.can_prefill_ahead for model in self._models)
        moments += [self._worked + _PATIENCE] if ahead else []
        moments += [self._stop_at] if self._stop_at is not None else []
        soonest = min(moments)
        return None if soonest == float("inf") else max(0, soonest - self._clock())

    def _work(self) -> None:
        busy = False
        for model in self._models:
            model.scheduler.admit()
            if model.scheduler.running:
                busy, self._worked = True, self._clock()
                self._guarded(model, model.scheduler.step)
            self._models.touch(model)
        if not busy and self._inbox.empty():
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        patient = self._stop_at is None and self._clock() >= self._worked + _PATIENCE
        ahead = next((model for model in self._models if model.scheduler.can_prefill_ahead), None)
        if ahead is not None and patient:
            self._guarded(ahead, ahead.scheduler.prefill_ahead)
        else:
            self._models.unload_expired()

    def _guarded(self, model: PooledModel, step: Callable[[], None]) -> None:
        """Run a step. An engine that fails ends its own answers and nothing else; the next request loads it again."""
        try:
            step()
        except LocalqwenError as error:
            model.scheduler.fail(error)
            self._models.unload(model)

    def _flush(self) -> None:
        if self._outgoing:
            batch, self._outgoing = self._outgoing, []
            self._post(batch)

    def _emit(self, job: Job, index: int, what: Event | LocalqwenError) -> None:
        self._outgoing.append((job, JobEvent(what, index)))

    def _accept(self, job: Job) -> None:
        if job.cancelled:
            return
        try:
            if self._stop_at is not None:
                raise Busy(_STOPPING)
            model = self._models.get(job.model)
            self._check_queue(model)
        except LocalqwenError as error:
            self._emit(job, 0, error)
            return
        model.keep_alive = self._limits.keep_alive if job.parsed.keep_alive is None else job.parsed.keep_alive
        self._tokenizing.replies(job, model, partial(self._tokenized, model, job))

    def _check_queue(self, model: PooledModel) -> None:
        waiting = len(model.scheduler.tickets) + model.tokenizing
        free = model.scheduler.engine.max_runs
        if waiting >= free + self._limits.queue:
            raise Busy(
                f"{model.name} answers {free} requests at once and {self._limits.queue} wait already",
                "try again later; the server's --parallel and --max-queue set these numbers",
                retry_after=5,
            )

    def _tokenized(self, model: PooledModel, job: Job, done: Future[list[Reply]]) -> None:
        self._models.touch(model)
        if job.cancelled:
            return
        problem = done.exception()
        if isinstance(problem, LocalqwenError):
            self._emit(job, 0, problem)
        elif problem is not None:
            self._emit(job, 0, EngineError(f"unexpected {type(problem).__name__}: {problem}"))
        elif self._stop_at is not None:
            self._emit(job, 0, Busy(_STOPPING))
        elif model not in self._models:  # its engine failed meanwhile
            self._accept(job)
        else:
            model.scheduler.add(job, done.result())

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        for model in self._models:
            model.scheduler.cancel(job)

    def _opened_for(self, name: str, answer: Future[LoadedModel] | Future[int]) -> PooledModel | None:
        """Return the model for an answer, or None if nobody waits for it any more, or if the model cannot be loaded:
        the answer then carries the error."""
        if not answer.set_running_or_notify_cancel():
            return None
        try:
            return self._models.get(name)
        except LocalqwenError as error:
            answer.set_exception(error)
            return None

    def _load(self, name: str, keep_alive: float | None, answer: Future[LoadedModel]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        if keep_alive is not None:
            self._models.keep(model, keep_alive)
        answer.set_result(model.scheduler.loaded)

    def _count(self, name: str, request: Request, answer: Future[int]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        self._tokenizing.count(request, model, partial(self._counted, model, answer))

    def _counted(self, model: PooledModel, answer: Future[int], done: Future[int]) -> None:
        self._models.touch(model)
        problem = done.exception()
        if problem is None:
            answer.set_result(done.result())
        else:
            answer.set_exception(problem)

    def _open_scheduler(self, name: str) -> Scheduler[Job]:
        self._flush()  # loading takes seconds; events that are ready must not wait for it
        return Scheduler(self._open_model(name), self._emit, prefill_ahead=self._limits.prefill_ahead)

    def _begin_stop(self, grace: float) -> None:
        self._stop_at = self._clock() + grace
        for model in self._models:
            model.scheduler.fail_waiting(Busy(_STOPPING))

    def _close(self) -> None:
        """End everything, also if the thread dies of a bug: nobody waits for ever, and the server is notified."""
        for model in self._models:
            model.scheduler.fail(Busy("the server has stopped"))
            self._models.unload(model)
        self._flush()
        self._tokenizing.close()
        if self._stop_at is None:
            self.on_death()

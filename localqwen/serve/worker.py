"""The one thread that owns the engines: it opens them, steps them, and closes them.

Other threads put messages into its inbox; it answers through `post`, once per step for all requests, so that a step
costs the event loop one wake-up however many clients there are. With nothing to do it sleeps on the inbox.

Prompts are rendered and tokenised in a thread of their own: a long one stalls nobody.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from localqwen.chat.messages import Request
from localqwen.chat.reply import ModelFacts, Reply, count_prompt
from localqwen.errors import Busy, EngineError, LocalqwenError, NotEnoughMemory
from localqwen.serve.job import Delivery, Job, Post
from localqwen.serve.runs import Opened, Runs

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


@dataclass(eq=False)
class _Model:
    """One that is loaded. `encoding` counts jobs whose prompts are being tokenised; `until` is when it is unloaded."""

    name: str
    runs: Runs
    opened: Opened
    keep_alive: float
    encoding: int = 0
    until: float = 0.0

    @property
    def idle(self) -> bool:
        return not (self.runs.busy or self.encoding)


@dataclass(frozen=True)
class LoadedModel:
    """For people who ask what is loaded. `idle_seconds_left` is inf where it stays, None while it works."""

    name: str
    engine: str
    context_length: int
    max_runs: int
    running: int
    waiting: int
    idle_seconds_left: float | None


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
        self._models: dict[str, _Model] = {}
        self._outgoing: list[tuple[Job, Delivery]] = []
        self._encoder = ThreadPoolExecutor(1, "localqwen-prompts")
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
                answer.set_result(any(model.runs.end_thinking(job_id) for model in self._models.values()))

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
        self._inbox.put(partial(self._keep_alive, name, 0.0))

    def loaded(self) -> list[LoadedModel]:
        """A snapshot; the numbers may be one step old."""
        return [self._describe(model) for model in list(self._models.values())]

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
        return self._clock() >= self._stop_at or all(model.idle for model in self._models.values())

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
        models = self._models.values()
        if any(model.runs.busy for model in models):
            return 0
        moments = [model.until for model in models if model.idle]
        moments += [self._worked + _PATIENCE] if any(model.runs.preparing for model in models) else []
        moments += [self._stop_at] if self._stop_at is not None else []
        soonest = min(moments, default=float("inf"))
        return None if soonest == float("inf") else max(0, soonest - self._clock())

    def _work(self) -> None:
        busy = False
        for model in list(self._models.values()):
            model.runs.admit()
            if model.runs.running:
                busy, self._worked = True, self._clock()
                self._guarded(model, model.runs.step)
            self._touch(model)
        if not busy and self._inbox.empty():
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        for model in list(self._models.values()):
            patient = self._clock() >= self._worked + _PATIENCE
            if model.runs.preparing and patient and self._stop_at is None:
                self._guarded(model, model.runs.read_ahead)
                return
            if model.idle and self._clock() >= model.until:
                self._unload(model)

    def _guarded(self, model: _Model, step: Callable[[], None]) -> None:
        """An engine that fails takes its own answers with it, and nothing else; the next request opens it anew."""
        try:
            step()
        except LocalqwenError as error:
            model.runs.fail(error)
            self._unload(model)

    def _touch(self, model: _Model) -> None:
        if not model.idle:
            model.until = self._clock() + model.keep_alive

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
            model = self._opened(job.model)
            self._check_queue(model)
        except LocalqwenError as error:
            self._deliver(job, Delivery(error))
            return
        model.encoding += 1
        model.keep_alive = self._limits.keep_alive if job.asked.keep_alive is None else job.asked.keep_alive
        facts = model.opened.facts
        future = self._encoder.submit(lambda: _replies(job, facts))
        future.add_done_callback(lambda done: self._inbox.put(partial(self._encoded, model, job, done)))

    def _check_queue(self, model: _Model) -> None:
        waiting = len(model.runs.jobs) + model.encoding
        free = model.opened.engine.max_runs
        if waiting >= free + self._limits.queue:
            raise Busy(
                f"{model.name} answers {free} requests at once and {self._limits.queue} wait already",
                "try again later; the server's --parallel and --max-queue set these numbers",
                retry_after=5,
            )

    def _encoded(self, model: _Model, job: Job, done: Future[list[Reply]]) -> None:
        model.encoding -= 1
        self._touch(model)
        if job.cancelled:
            return
        problem = done.exception()
        if isinstance(problem, LocalqwenError):
            self._deliver(job, Delivery(problem))
        elif problem is not None:
            self._deliver(job, Delivery(EngineError(f"unexpected {type(problem).__name__}: {problem}")))
        elif self._stop_at is not None:
            self._deliver(job, Delivery(Busy(_STOPPING)))
        elif self._models.get(model.name) is not model:  # its engine failed meanwhile
            self._accept(job)
        else:
            model.runs.add(job, done.result())

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        for model in self._models.values():
            model.runs.cancel(job)

    def _opened_for(self, name: str, answer: Future[Opened] | Future[int]) -> _Model | None:
        """None where nobody waits for the answer any more, or it already holds why the model cannot be opened."""
        if not answer.set_running_or_notify_cancel():
            return None
        try:
            return self._opened(name)
        except LocalqwenError as error:
            answer.set_exception(error)
            return None

    def _load(self, name: str, keep_alive: float | None, answer: Future[Opened]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        if keep_alive is not None:
            model.keep_alive = keep_alive
            model.until = self._clock() + keep_alive
        answer.set_result(model.opened)

    def _count(self, name: str, request: Request, answer: Future[int]) -> None:
        model = self._opened_for(name, answer)
        if model is None:
            return
        model.encoding += 1
        future = self._encoder.submit(count_prompt, request, model.opened.facts)
        future.add_done_callback(lambda done: self._inbox.put(partial(self._counted, model, answer, done)))

    def _counted(self, model: _Model, answer: Future[int], done: Future[int]) -> None:
        model.encoding -= 1
        self._touch(model)
        problem = done.exception()
        if problem is None:
            answer.set_result(done.result())
        else:
            answer.set_exception(problem)

    def _opened(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            opened = self._make_room_and_open(name)
            runs = Runs(opened, self._deliver, prepare=self._limits.prepare)
            model = self._models[name] = _Model(name, runs, opened, self._limits.keep_alive)
        model.until = self._clock() + model.keep_alive
        return model

    def _make_room_and_open(self, name: str) -> Opened:
        """Idle models make room, the longest idle first."""
        self._flush()  # opening takes seconds; what is ready should not wait for it
        while True:
            try:
                return self._open_model(name)
            except NotEnoughMemory:
                idle = sorted((model for model in self._models.values() if model.idle), key=lambda model: model.until)
                if not idle:
                    raise
                self._unload(idle[0])

    def _keep_alive(self, name: str, seconds: float) -> None:
        if name in self._models:
            self._models[name].keep_alive = seconds
            self._models[name].until = min(self._models[name].until, self._clock() + seconds)

    def _unload(self, model: _Model) -> None:
        self._models.pop(model.name, None)
        if model.encoding:  # the engine must outlive whoever tokenises with it
            self._encoder.submit(lambda: None).result()
        model.runs.close()

    def _describe(self, model: _Model) -> LoadedModel:
        left = max(0.0, model.until - self._clock()) if model.idle else None
        engine, runs = model.opened.engine, model.runs
        waiting = runs.waiting + model.encoding
        return LoadedModel(model.name, engine.name, engine.context_length, engine.max_runs, runs.running, waiting, left)

    def _begin_stop(self, grace: float) -> None:
        self._stop_at = self._clock() + grace
        for model in self._models.values():
            model.runs.fail_waiting(Busy(_STOPPING))

    def _close(self) -> None:
        """Also where the thread dies of a bug: nobody waits for ever, and the server learns of it."""
        for model in list(self._models.values()):
            model.runs.fail(Busy("the server has stopped"))
            self._unload(model)
        self._flush()
        self._encoder.shutdown(wait=False, cancel_futures=True)
        if self._stop_at is None:
            self.on_death()


def _replies(job: Job, facts: ModelFacts) -> list[Reply]:
    """One per answer. With a seed, each answer has its own, or all would be the same."""
    request, replies = job.asked.request, []
    for index in range(job.asked.answers):
        seed = request.sampling.seed
        own = request if seed is None else replace(request, sampling=replace(request.sampling, seed=seed + index))
        replies.append(Reply(own, facts))
    return replies

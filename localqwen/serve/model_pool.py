"""All models of the server: loaded by the first request for one, unloaded when idle for long or when another needs the
memory, and ended with the server.

Everything here happens in the event loop, and nothing here waits for a model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from localqwen.chat.messages import Request
from localqwen.errors import Busy, LocalqwenError
from localqwen.model_process.process import ModelSpec, OpenedModel, Start, start_child
from localqwen.models import set_aside
from localqwen.serve.api import FOR_EVER
from localqwen.serve.deaths import Deaths
from localqwen.serve.served_model import Limits, ServedModel, Surroundings
from localqwen.serve.tasks import Counting, Job, Loading, Task, Waiting

T = TypeVar("T")

#: Seconds that a model waits for another one to be loaded: together they may not fit, but one may hang.
_TURN = 5.0
#: Seconds between two looks whether the last answers have ended.
_LOOK = 0.02


@dataclass(frozen=True)
class ModelStatus:
    """What a loaded model does at the moment. `idle_seconds_left` is inf if it stays loaded, None while it works; `pid`
    is its process."""

    name: str
    engine: str
    context_length: int
    max_runs: int
    running: int
    waiting: int
    idle_seconds_left: float | None
    pid: int = 0


class ModelPool:
    """The models. `spec` resolves the name of one, in a thread, and may raise any LocalqwenError; `start` starts its
    process."""

    def __init__(
        self,
        spec: Callable[[str], ModelSpec],
        limits: Limits,
        *,
        start: Start = start_child,
    ) -> None:
        self.deaths = Deaths(on_aside=set_aside.keep)
        self._around = Surroundings(limits, self.deaths, spec, start, self._make_room, self._turn)
        self._models: dict[str, ServedModel] = {}
        self._keep_alive: dict[str, float] = {}
        self._until: dict[str, float] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False

    # What clients want.

    def submit(self, job: Job) -> None:
        """Answer a request: events, or an error, come into its mailbox."""
        keep_alive = job.parsed.keep_alive
        self._keep_alive[job.model] = self._around.limits.keep_alive if keep_alive is None else keep_alive
        self._add(job)

    def cancel(self, task: Task) -> None:
        """End a task. Nothing more of it comes."""
        if task.model in self._models:
            self._models[task.model].cancel(task)

    async def end_thinking(self, number: str) -> bool:
        """End the thinking of the running answers of a job. Return whether there is one."""
        owner = next((model for model in self._models.values() if number in model.tasks), None)
        return await owner.end_thinking(number) if owner is not None else False

    async def load(self, name: str, *, keep_alive: float | None = None) -> OpenedModel:
        """Load a model now, and keep it for `keep_alive` seconds (None: its present setting). Raise the error that
        prevents it."""
        if keep_alive is not None:
            self._keep_alive[name] = keep_alive
        return await self._value(Loading(name))

    async def count(self, name: str, request: Request) -> int:
        """Return how many tokens the prompt of a request has. Raise the error that prevents it."""
        return await self._value(Counting(name, request))

    async def _value(self, task: Waiting[T]) -> T:
        """Return what a task gives. Cancelling this ends the task."""
        self._add(task)
        try:
            return await task.answer
        finally:
            self.cancel(task)

    def _add(self, task: Task) -> None:
        model = self._models.setdefault(task.model, ServedModel(task.model, self._around, self._on_free))
        self._stop_timer(task.model)
        try:
            if self._stopping:
                raise Busy("the server is stopping")
            model.add(task)
        except LocalqwenError as error:
            task.fail(error)
            if model.free:
                self._on_free(model)

    def unload(self, name: str) -> None:
        """Unload a model as soon as it has nothing to do, and try it again where it was set aside."""
        self.deaths.revive(name)
        self._keep_alive[name] = 0.0
        model = self._models.get(name)
        if model is not None and model.free:
            self._on_free(model)

    def loaded(self) -> list[ModelStatus]:
        """Return what each loaded model does."""
        return [_status(model, self._seconds_left(model.name)) for model in self._models.values() if model.opened]

    @property
    def open_tasks(self) -> int:
        """Return how many tasks have not ended."""
        return sum(len(model.tasks) for model in self._models.values())

    # Who stays in memory.

    def _on_free(self, model: ServedModel) -> None:
        """Start the idle time of a model."""
        seconds = self._keep_alive.get(model.name, self._around.limits.keep_alive)
        self._stop_timer(model.name)
        loop = asyncio.get_running_loop()
        self._until[model.name] = time.monotonic() + seconds
        if seconds < FOR_EVER:
            self._timers[model.name] = loop.call_later(seconds, self._unload_if_free, model)

    def _stop_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _unload_if_free(self, model: ServedModel) -> None:
        if model.free:
            self._in_background(model.unload())

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        """Let work go on; the loop itself keeps no reference to it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _seconds_left(self, name: str) -> float:
        return max(0.0, self._until.get(name, 0.0) - time.monotonic())

    async def _make_room(self) -> bool:
        """Unload the model that has had nothing to do for longest. Return whether there was one."""
        free = sorted((model for model in self._models.values() if model.free), key=lambda each: self._until[each.name])
        if free:
            await free[0].unload()
        return bool(free)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let one model load at a time, as each looks at the memory that is left; one that hangs is not waited for."""
        held = False
        with suppress(TimeoutError):
            held = await asyncio.wait_for(self._loading.acquire(), _TURN)
        try:
            yield
        finally:
            if held:
                self._loading.release()

    # The end.

    async def stop(self, grace: float) -> None:
        """Refuse new work, give running answers `grace` seconds, then end every process. May be called again."""
        self._stopping = True
        for model in self._models.values():
            model.fail(Busy("the server is stopping"), waiting_only=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.open_tasks:
                    await asyncio.sleep(_LOOK)
        for model in self._models.values():
            model.fail(Busy("the server has stopped"))
            self._stop_timer(model.name)
        set_aside.keep({})
        await asyncio.gather(*(model.unload(at_once=True) for model in self._models.values()))


def _status(model: ServedModel, seconds_left: float) -> ModelStatus:
    opened, pid = model.opened, model.pid
    assert opened is not None
    assert pid is not None
    running = sum(task.begun for task in model.tasks.values())
    waiting = len(model.tasks) - running
    left = None if model.tasks else seconds_left
    return ModelStatus(model.name, opened.engine, opened.context_length, opened.max_runs, running, waiting, left, pid)

"""A pool of models in an event loop of its own, for tests that are no coroutines."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from local_server import eventually
from thread_child import starting

from localqwen.chat.load_options import LoadOptions
from localqwen.chat.messages import Event, Finished, Message, Request, Started, Text
from localqwen.chat.model_info import LoadedModel
from localqwen.errors import LocalqwenError
from localqwen.model_process.process import ModelSpec
from localqwen.serve.api import ParsedRequest
from localqwen.serve.model_pool import ModelPool, ModelStatus
from localqwen.serve.served_model import Limits
from localqwen.serve.tasks import Job, JobEvent

T = TypeVar("T")


class Desk:
    """A pool of models in an event loop of its own, and what came from it."""

    def __init__(self, open_model: Callable[[str], LoadedModel], limits: Limits) -> None:
        self.came: dict[Job, list[JobEvent]] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.pool = self.wait(self._make(open_model, limits))

    async def _make(self, open_model: Callable[[str], LoadedModel], limits: Limits) -> ModelPool:
        return ModelPool(lambda name: ModelSpec(name, name, LoadOptions()), limits, start=starting(open_model))

    def later(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.later(work).result(60)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def work() -> T:
            return function(*arguments)

        return self.wait(work())

    def loaded(self) -> list[ModelStatus]:
        return self.call(self.pool.loaded)

    def cancel(self, job: Job) -> None:
        self.call(self.pool.cancel, job)

    def ask(self, text: str = "hi", *, answers: int = 1, model: str = "m", **fields: Any) -> Job:
        request = Request([Message("user", text)], **fields)
        return self.submit(ParsedRequest(model, request, answers=answers))

    def submit(self, parsed: ParsedRequest) -> Job:
        return self.wait(self._submit(parsed))

    async def _submit(self, parsed: ParsedRequest) -> Job:
        job = Job(parsed, parsed.model)
        self.pool.submit(job)
        self._reading = asyncio.ensure_future(self._collect(job))
        job.reading = self._reading  # type: ignore[attr-defined]  # or the loop forgets it
        return job

    async def _collect(self, job: Job) -> None:
        while True:
            for event in await job.mailbox.take():
                self.came.setdefault(job, []).append(event)

    def close(self) -> None:
        self.wait(self.pool.stop(0))
        for task in asyncio.all_tasks(self.loop):
            self.loop.call_soon_threadsafe(task.cancel)
        self.call(lambda: None)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def events(self, job: Job, index: int = 0) -> list[Event]:
        found = [delivery.what for delivery in self.came.get(job, []) if delivery.index == index]
        return [what for what in found if not isinstance(what, LocalqwenError)]

    def error(self, job: Job) -> LocalqwenError | None:
        found = [delivery.what for delivery in self.came.get(job, [])]
        return next((what for what in found if isinstance(what, LocalqwenError)), None)

    def finished(self, job: Job, index: int = 0) -> bool:
        return any(isinstance(event, Finished) for event in self.events(job, index))

    def started(self, job: Job) -> Started:
        assert eventually(lambda: bool(self.events(job)))
        event = self.events(job)[0]
        assert isinstance(event, Started)
        return event

    def text(self, job: Job, index: int = 0) -> str:
        assert eventually(lambda: self.finished(job, index))
        return "".join(event.text for event in self.events(job, index) if isinstance(event, Text))

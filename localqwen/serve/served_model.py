"""One model of the server: what clients want of it, and the processes that do it.

While anything is wanted, a process is opened and given everything; where it dies, what had not begun is given to the
next one. All of it happens in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from localqwen.errors import Busy, EngineError, LocalqwenError, NotEnoughMemory
from localqwen.model_process import file_stamps
from localqwen.model_process.death import Death
from localqwen.model_process.file_stamps import Stamps
from localqwen.model_process.process import ModelProcess, ModelSpec, OpenedModel, ProcessDied, Start
from localqwen.serve.at_work import AtWork
from localqwen.serve.deaths import Deaths
from localqwen.serve.tasks import Task

_log = logging.getLogger("localqwen.serve")
#: A task that has not begun is given to so many processes.
_TRIES = 2


@dataclass(frozen=True)
class Limits:
    """The limits of a model: `queue` requests may wait; an idle model stays loaded for `keep_alive` seconds; `stage`
    is how many seconds each of rendering, tokenizing and compiling a grammar may take, `load` how many loading may;
    `prefill_ahead` computes the beginning of the next turn's prompt while nobody waits."""

    queue: int = 64
    keep_alive: float = 300.0
    prefill_ahead: bool = True
    stage: float = 10.0
    load: float = 600.0


@dataclass(frozen=True)
class Surroundings:
    """What a model needs of the server: `spec` resolves its name (it reads the disk, in a thread), `start` starts a
    child, `make_room` unloads another model and returns whether there was one, `turn` is held while a model loads."""

    limits: Limits
    deaths: Deaths
    spec: Callable[[str], ModelSpec]
    start: Start
    make_room: Callable[[], Awaitable[bool]]
    turn: Callable[[], AbstractAsyncContextManager[None]]


class ServedModel:
    """A model by its resolved name. `on_free` is called when it is loaded and has nothing left to do."""

    def __init__(self, name: str, around: Surroundings, on_free: Callable[[ServedModel], None]) -> None:
        self.name = name
        self.tasks: dict[str, Task] = {}
        self._around = around
        self._on_free = on_free
        self._work: AtWork | None = None
        self._living: asyncio.Task[None] | None = None
        self._files: Stamps = {}

    @property
    def opened(self) -> OpenedModel | None:
        """Return what the process says of the model; None where none has it open."""
        return self._work.opened if self._work is not None else None

    @property
    def pid(self) -> int | None:
        """Return the id of the process that has the model open."""
        return self._work.pid if self._work is not None else None

    @property
    def free(self) -> bool:
        """Return whether it is loaded and has nothing to do."""
        return self._work is not None and not self.tasks

    def add(self, task: Task) -> None:
        """Do a task, as soon as the model is loaded. Raise Busy where too many wait, SetAside, and Unsupported for a
        request at which processes died."""
        self._check_queue(task)
        self._check_deaths(task)
        self.tasks[task.id] = task
        if self._living is None:
            self._living = asyncio.ensure_future(self._live())
        elif self._work is not None:
            self._work.give(task)

    def _check_queue(self, task: Task) -> None:
        free = self.opened.max_runs if self.opened is not None else 0
        waiting = sum(each.takes_a_place for each in self.tasks.values())
        if task.takes_a_place and waiting >= free + self._around.limits.queue:
            raise Busy(
                f"{self.name} answers {free} requests at once and {self._around.limits.queue} wait already",
                "try again later; the server's --parallel and --max-queue set these numbers",
                retry_after=5,
            )

    def _check_deaths(self, task: Task) -> None:
        """Raise SetAside for a model, and Unsupported for a task, that ended processes before. Other files on disk, and
        all is forgotten."""
        deaths = self._around.deaths
        if deaths.knows(self.name) and file_stamps.change(self._files) is not None:
            deaths.revive(self.name)
        deaths.check_model(self.name)
        deaths.check_request(self.name, lambda: task.digest)

    def cancel(self, task: Task) -> None:
        """End a task. Nothing more of it comes."""
        if self.tasks.pop(task.id, None) is not None and self._work is not None:
            self._work.cancel(task)

    async def end_thinking(self, number: str) -> bool:
        """End the thinking of the running answers of a task. Return whether there is one."""
        if self._work is None or number not in self.tasks:
            return False
        return await self._work.end_thinking(number)

    def fail(self, error: LocalqwenError, *, waiting_only: bool = False) -> None:
        """End every task, or those of which nothing has begun."""
        for task in list(self.tasks.values()):
            if not (waiting_only and task.begun):
                task.fail(error)
                self.cancel(task)

    async def unload(self, *, at_once: bool = False) -> None:
        """End the process and free its memory. Tasks that are left, or come later, open another one."""
        living = self._living
        if living is None:
            return
        if self._work is not None:
            self._work.close(at_once=at_once)
        else:
            living.cancel()  # it is being loaded
        await asyncio.wait([living])

    # The life of its processes.

    async def _live(self) -> None:
        """Open processes and give them the tasks, until there are none."""
        try:
            while self.tasks:
                process = await self._open()
                if process is not None:
                    await self._use(process)
        finally:
            self._living = None
            # Empty, unless loading was cancelled or the server has a bug, which asyncio reports: nobody waits for ever.
            self.fail(EngineError(f"{self.name} cannot be used: the server failed", "report it, with the server's log"))

    async def _open(self) -> ModelProcess | None:
        """Open a process; None where that failed: its tasks have the error, or try again."""
        try:
            self._around.deaths.check_model(self.name)
            async with self._around.turn():
                return await self._open_with_room()
        except ProcessDied as error:
            self._died(error.death, "while it loaded the model", [])
        except LocalqwenError as error:
            self.fail(error)
        return None

    async def _open_with_room(self) -> ModelProcess:
        """Open a process. While the memory does not suffice, unload other models that have nothing to do."""
        limits = self._around.limits
        spec = await asyncio.to_thread(self._around.spec, self.name)
        self._files = spec.files
        settings = {"prefill_ahead": limits.prefill_ahead, "stage_seconds": limits.stage}
        while True:
            try:
                return await ModelProcess.open(spec, self._around.start, seconds=limits.load, settings=settings)
            except NotEnoughMemory:
                if not await self._around.make_room():
                    raise

    async def _use(self, process: ModelProcess) -> None:
        """Let a process work until it ends."""
        for warning in process.opened.warnings if process.opened else ():
            _log.warning("%s: %s", self.name, warning)
        work = AtWork(process, self.tasks, lambda: self._on_free(self), stage_seconds=self._around.limits.stage)
        self._work = work
        try:
            death = await work.run()
        finally:
            self._work = None
        if death is not None:
            self._died(death, _doing(work.suspects), work.suspects)
        for task in self.tasks.values():
            task.start_again()

    def _died(self, death: Death, doing: str, suspects: Sequence[Task]) -> None:
        """Fail what the process worked on; what had not begun is left for the next one, once."""
        _log.warning("%s", f"{self.name}: its process {death.text} {doing}".rstrip())
        for line in death.last_words:
            _log.warning("%s: | %s", self.name, line)
        self._around.deaths.note(self.name, [task.digest for task in suspects], death.cause, doing)
        error = ProcessDied(self.name, death, doing)
        for task in list(self.tasks.values()):
            task.deaths += 1
            if task.begun or task.blamed or task.deaths >= _TRIES:
                del self.tasks[task.id]
                task.fail(error)


def _doing(suspects: Sequence[Task]) -> str:
    """Return in words what a process does that works on these tasks."""
    if any(task.blamed for task in suspects):
        return ""  # the reason of the end says it
    counts = [(sum(task.begun for task in suspects), "wrote"), (sum(bool(task.stage) for task in suspects), "prepared")]
    doing = " and ".join(f"{verb} {_answers(count)}" for count, verb in counts if count)
    return f"while it {doing or 'had nothing to do'}"


def _answers(count: int) -> str:
    return "an answer" if count == 1 else f"{count} answers"

"""A model's process at work: it is given tasks, what it says goes to them, and its clocks run.

It shares the tasks with the model whose process it is: what is done is removed there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from localqwen.chat.messages import Finished
from localqwen.errors import EngineError, LocalqwenError
from localqwen.model_process import file_stamps, values
from localqwen.model_process.death import Death
from localqwen.model_process.frames import BrokenMessage, Message
from localqwen.model_process.process import ModelProcess
from localqwen.serve.tasks import Counting, Job, Task
from localqwen.serve.watch import Watch

_log = logging.getLogger("localqwen.serve")


class AtWork:
    """An open process and the tasks of its model. `on_free` is called when nothing is left to do."""

    def __init__(
        self, process: ModelProcess, tasks: dict[str, Task], on_free: Callable[[], None], *, stage_seconds: float
    ) -> None:
        assert process.opened is not None
        self.opened = process.opened
        self.pid = process.pid
        self._process = process
        self._tasks = tasks
        self._on_free = on_free
        self._watch = Watch(stage_seconds, lambda number: process.send({"ping": number}), self._late)
        self._ending: dict[str, list[asyncio.Future[bool]]] = {}
        self._leaving: dict[str, Task] = {}
        self._closing: asyncio.Task[None] | None = None
        self._stale = False

    async def run(self) -> Death | None:
        """Do the tasks until the process ends. Return how it died; None where it was closed."""
        try:
            for task in list(self._tasks.values()):
                self.give(task)
            self._rest()
            death = await self._process.run(self._take)
        finally:
            self._watch.close()
            self._end_waits()
        return None if self._closing is not None else death

    def give(self, task: Task) -> None:
        """Let the process do a task. Where its files are others now, the task is left for the next process."""
        if task.opened(self.opened):
            del self._tasks[task.id]
            self._rest()
            return
        self._look_at_files()
        message = None if self._stale else task.message()
        if message is not None:
            self._watch.work()
            task.given = True
            self._process.send(message)

    def cancel(self, task: Task) -> None:
        """End a task that was removed. A stage of its preparation goes on all the same, and so does its clock."""
        if task.stage:
            self._leaving[task.id] = task
        self._process.send({"cancel": task.id})
        self._rest()

    def end_thinking(self, number: str) -> Awaitable[bool]:
        """End the thinking of the running answers of a task. The future says whether there is one."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ending.setdefault(number, []).append(answer)
        self._process.send({"end_thinking": number})
        return answer

    def close(self, *, at_once: bool = False) -> None:
        """Let the process end; its memory is free when `run` has returned."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._process.close())
        if at_once:
            self._process.kill("was ended")

    @property
    def suspects(self) -> list[Task]:
        """Return the tasks that the process works on, those whose clients have gone among them: one that it hangs on
        alone, if it does."""
        running = [task for task in (*self._tasks.values(), *self._leaving.values()) if task.running]
        return [task for task in running if task.blamed] or running

    def _rest(self) -> None:
        """Stop the clocks where nothing is left to do, and close a process whose files are others now."""
        if self._stale and not any(task.given for task in self._tasks.values()):
            self.close()
        elif not self._tasks:
            self._watch.rest()
            self._on_free()

    def _end_waits(self) -> None:
        for answers in self._ending.values():
            for answer in answers:
                answer.set_result(False)
        self._ending.clear()

    def _late(self, number: str, what: str) -> None:
        """End a process that hangs. The request that it hangs on is to blame."""
        task = self._tasks.get(number) or self._leaving.get(number)
        if task is not None:
            task.blamed = True
        self._process.kill(what)

    # What the process says.

    def _take(self, message: Message) -> None:
        """Take a message. Raise BrokenMessage for one that is not understood."""
        match message:
            case {"events": [*events]}:
                for event in events:
                    self._take_event(event)
            case {"stage": [str(number), str(name)]}:
                self._take_stage(number, name)
            case {"counted": [str(number), int(tokens)]}:
                self._take_count(number, tokens)
            case {"ended_thinking": [str(number), bool(found)]}:
                for answer in self._ending.pop(number, ()):
                    answer.set_result(found)
            case {"pong": int()}:
                self._watch.pong()
            case _:
                raise BrokenMessage(f"a message that is not known: {sorted(message)[:3]}")

    def _take_event(self, event: Any) -> None:
        match event:
            case [str(number), int(), dict(error)]:
                self._fail(number, values.error_from_json(error))
            case [str(number), int(index), [*what]]:
                found = values.event_from_json(what)
                if isinstance(found, Finished):
                    self._look_at_files()
                task = self._tasks.get(number)  # None: cancelled meanwhile
                if isinstance(task, Job) and task.take(found, index):
                    self._done(number)
            case _:
                raise BrokenMessage("an event of nothing")

    def _take_stage(self, number: str, name: str) -> None:
        task = self._tasks.get(number) or self._leaving.get(number)
        if task is not None:
            task.stage = name
        if not name:
            self._leaving.pop(number, None)
        self._watch.stage(number, name)

    def _take_count(self, number: str, tokens: int) -> None:
        task = self._tasks.get(number)
        if isinstance(task, Counting):
            task.finish(tokens)
            self._done(number)

    def _fail(self, number: str, error: LocalqwenError) -> None:
        task = self._tasks.get(number)
        if task is not None:
            task.fail(error)
            self._done(number)

    def _done(self, number: str) -> None:
        self._tasks.pop(number, None)
        self._rest()

    # Files that change while they are mapped.

    def _look_at_files(self) -> None:
        """Let no new task begin where other files are on disk now. What was written into the mapped files is in every
        answer that has begun: those end here."""
        change = None if self._stale else file_stamps.change(self.opened.files)
        if change is None:
            return
        self._stale = True
        name = self._process.name
        _log.warning("%s: its file was %s: the model is loaded again", name, change)
        if change == "modified":
            for task in [task for task in self._tasks.values() if task.begun]:
                self._fail(task.id, EngineError(f"the file of {name} was written to while it answered", "ask again"))
            self.close(at_once=True)
        self._rest()

"""The models in memory: loaded by the first request for one, unloaded when idle for long or when another needs the
memory.

Everything here happens in the worker's thread, except `snapshot`, which any thread may call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localqwen.chat.scheduler import Scheduler
from localqwen.errors import NotEnoughMemory
from localqwen.serve.channel import Job


@dataclass(eq=False)
class PooledModel:
    """A loaded model and its answers. `tokenizing` counts the prompts that are being tokenized, `keep_alive` is how
    many seconds it stays loaded while idle, `until` the time on the clock at which it is unloaded."""

    name: str
    scheduler: Scheduler[Job]
    keep_alive: float
    tokenizing: int = 0
    until: float = 0.0

    @property
    def idle(self) -> bool:
        """Return whether nothing is computed, tokenized or waiting."""
        return not (self.scheduler.busy or self.tokenizing)


@dataclass(frozen=True)
class ModelStatus:
    """What a loaded model does at the moment. `idle_seconds_left` is inf if it stays loaded, None while it works."""

    name: str
    engine: str
    context_length: int
    max_runs: int
    running: int
    waiting: int
    idle_seconds_left: float | None


class ModelPool:
    """The loaded models. `open_scheduler` is called with a resolved name and may raise any LocalqwenError;
    `before_unload` is called with a model before it is unloaded. `keep_alive` is how many seconds an idle model stays
    loaded, unless a request says otherwise."""

    def __init__(
        self,
        open_scheduler: Callable[[str], Scheduler[Job]],
        before_unload: Callable[[PooledModel], None],
        keep_alive: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_scheduler = open_scheduler
        self._before_unload = before_unload
        self._keep_alive = keep_alive
        self._clock = clock
        self._models: dict[str, PooledModel] = {}

    def __iter__(self) -> Iterator[PooledModel]:
        """Iterate over the models that are loaded now; they may be unloaded meanwhile."""
        return iter(list(self._models.values()))

    def __contains__(self, model: PooledModel) -> bool:
        return self._models.get(model.name) is model

    @property
    def idle(self) -> bool:
        """Return whether no model works."""
        return all(model.idle for model in self)

    def get(self, name: str) -> PooledModel:
        """Return the loaded model, and load it first if necessary. Raise the LocalqwenError that prevents loading."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = PooledModel(name, self._make_room_and_open(name), self._keep_alive)
        model.until = self._clock() + model.keep_alive
        return model

    def _make_room_and_open(self, name: str) -> Scheduler[Job]:
        """Open a model. While the memory does not suffice, unload idle models, the longest idle first."""
        while True:
            try:
                return self._open_scheduler(name)
            except NotEnoughMemory:
                idle = sorted((model for model in self if model.idle), key=lambda model: model.until)
                if not idle:
                    raise
                self.unload(idle[0])

    def touch(self, model: PooledModel) -> None:
        """Start the idle time of a model again if it works."""
        if not model.idle:
            model.until = self._clock() + model.keep_alive

    def keep(self, model: PooledModel, seconds: float) -> None:
        """Keep a model loaded for `seconds` after its last work."""
        model.keep_alive = seconds
        model.until = self._clock() + seconds

    def release(self, name: str) -> None:
        """Unload a model as soon as it is idle."""
        for model in self:
            if model.name == name:
                self.keep(model, 0.0)

    def unload(self, model: PooledModel) -> None:
        """Close the engine of a model and remove it from the pool."""
        self._models.pop(model.name, None)
        self._before_unload(model)
        model.scheduler.close()

    def unload_expired(self) -> None:
        """Unload the models whose idle time is over."""
        for model in self:
            if model.idle and self._clock() >= model.until:
                self.unload(model)

    def next_expiry(self) -> float:
        """Return the time on the clock at which the next idle model is unloaded; inf if none is idle."""
        return min((model.until for model in self if model.idle), default=float("inf"))

    def snapshot(self) -> list[ModelStatus]:
        """Return what each model does. The numbers may be one step old."""
        return [self._describe(model) for model in self]

    def _describe(self, model: PooledModel) -> ModelStatus:
        left = max(0.0, model.until - self._clock()) if model.idle else None
        scheduler, engine = model.scheduler, model.scheduler.engine
        waiting, running = scheduler.waiting + model.tokenizing, scheduler.running
        return ModelStatus(model.name, engine.name, engine.context_length, engine.max_runs, running, waiting, left)

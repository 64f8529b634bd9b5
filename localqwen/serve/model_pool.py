"""The models in memory: opened when one is asked for, unloaded when it was idle for long or its room is needed.

Everything here happens in the worker's thread, but `snapshot`, which any thread may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localqwen.errors import NotEnoughMemory
from localqwen.serve.runs import Runs


@dataclass(eq=False)
class Resident:
    """One that is loaded. `encoding` counts prompts that are being tokenised; `until` is when it is unloaded."""

    name: str
    runs: Runs
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


class Residents:
    """`open_runs` is called with a resolved name and may raise any LocalqwenError; `before_unload` is called with a
    model that is about to go. `keep_alive` is seconds that an idle one stays unless it is told otherwise."""

    def __init__(
        self,
        open_runs: Callable[[str], Runs],
        before_unload: Callable[[Resident], None],
        keep_alive: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_runs = open_runs
        self._before_unload = before_unload
        self._keep_alive = keep_alive
        self._clock = clock
        self._models: dict[str, Resident] = {}

    def __iter__(self) -> Iterator[Resident]:
        """Of those that are there now: they may be unloaded meanwhile."""
        return iter(list(self._models.values()))

    def __contains__(self, model: Resident) -> bool:
        return self._models.get(model.name) is model

    @property
    def idle(self) -> bool:
        return all(model.idle for model in self)

    def needed(self, name: str) -> Resident:
        """Opened where it is not there. Raises what stands against it."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = Resident(name, self._make_room_and_open(name), self._keep_alive)
        model.until = self._clock() + model.keep_alive
        return model

    def _make_room_and_open(self, name: str) -> Runs:
        """Idle models make room, the longest idle first."""
        while True:
            try:
                return self._open_runs(name)
            except NotEnoughMemory:
                idle = sorted((model for model in self if model.idle), key=lambda model: model.until)
                if not idle:
                    raise
                self.unload(idle[0])

    def touch(self, model: Resident) -> None:
        """It works: its idle time begins anew."""
        if not model.idle:
            model.until = self._clock() + model.keep_alive

    def keep(self, model: Resident, seconds: float) -> None:
        """From now on, so long after its last work."""
        model.keep_alive = seconds
        model.until = self._clock() + seconds

    def release(self, name: str) -> None:
        """As soon as it is idle."""
        for model in self:
            if model.name == name:
                self.keep(model, 0.0)

    def unload(self, model: Resident) -> None:
        self._models.pop(model.name, None)
        self._before_unload(model)
        model.runs.close()

    def unload_expired(self) -> None:
        for model in self:
            if model.idle and self._clock() >= model.until:
                self.unload(model)

    def next_expiry(self) -> float:
        """On the clock; inf where none expires."""
        return min((model.until for model in self if model.idle), default=float("inf"))

    def snapshot(self) -> list[LoadedModel]:
        """The numbers may be one step old."""
        return [self._describe(model) for model in self]

    def _describe(self, model: Resident) -> LoadedModel:
        left = max(0.0, model.until - self._clock()) if model.idle else None
        engine, runs = model.runs.engine, model.runs
        waiting = runs.waiting + model.encoding
        return LoadedModel(model.name, engine.name, engine.context_length, engine.max_runs, runs.running, waiting, left)

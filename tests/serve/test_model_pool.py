"""Which models stay in memory: on a clock whose times are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from localqwen.chat.messages import Message, Request
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.chat.reply import Reply
from localqwen.chat.scheduler import Scheduler
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import NotEnoughMemory
from localqwen.serve.api import ParsedRequest
from localqwen.serve.channel import Job
from localqwen.serve.model_pool import ModelPool, PooledModel


@dataclass
class Memory:
    """A pool on a machine with room for `room` models."""

    room: int = 2
    now: float = 0.0
    unloaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = ModelPool(self._open, self._before_unload, 100, clock=lambda: self.now)

    def _open(self, name: str) -> Scheduler[Job]:
        if len(list(self.pool)) >= self.room:
            raise NotEnoughMemory(f"{name} does not fit")
        engine = ScriptedEngine(["one two"])
        return Scheduler(LoadedModel(engine, info_of(engine, name)), lambda job, index, what: None)

    def _before_unload(self, model: PooledModel) -> None:
        self.unloaded.append(model.name)

    def get(self, name: str, *, at: float) -> PooledModel:
        self.now = at
        return self.pool.get(name)

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.pool]


def work(model: PooledModel) -> Callable[[], None]:
    """Let a model answer; call the result to end it."""
    request = Request([Message("user", "hi")])
    job = Job(ParsedRequest(model.name, request), model.name)
    model.scheduler.add(job, [Reply(request, model.scheduler.info)])
    return lambda: model.scheduler.cancel(job)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_model_that_is_idle_for_longest_makes_room(order: tuple[str, str]) -> None:
    memory = Memory()
    for name in ("a", "b"):
        memory.get(name, at=0)
    for moment, name in enumerate(order):
        memory.get(name, at=moment + 1)
    memory.get("c", at=5)
    assert memory.unloaded == [order[0]]
    assert memory.names == sorted([order[1], "c"])


def test_a_model_that_works_does_not_make_room() -> None:
    memory = Memory()
    old, new = memory.get("a", at=0), memory.get("b", at=1)
    end = work(old)
    memory.get("c", at=2)
    assert memory.unloaded == ["b"]
    assert new.scheduler.engine.closed  # type: ignore[attr-defined]
    memory.pool.unload(memory.pool.get("c"))
    tokenizing = memory.get("d", at=3)
    tokenizing.tokenizing = 1
    with pytest.raises(NotEnoughMemory):
        memory.get("e", at=4)
    end()
    memory.get("e", at=5)
    assert memory.names == ["d", "e"]


def test_an_idle_model_expires_and_one_that_works_begins_anew() -> None:
    memory = Memory()
    model = memory.get("a", at=0)
    assert memory.pool.next_expiry() == 100
    end = work(model)
    memory.now = 150
    assert memory.pool.next_expiry() == float("inf")
    memory.pool.unload_expired()
    memory.pool.touch(model)
    end()
    assert memory.pool.next_expiry() == 250
    memory.now = 249
    memory.pool.unload_expired()
    assert memory.names == ["a"]
    memory.now = 250
    memory.pool.unload_expired()
    assert (memory.names, memory.unloaded) == ([], ["a"])


def test_a_model_is_kept_or_released_from_now_on() -> None:
    memory = Memory()
    kept, released = memory.get("a", at=0), memory.get("b", at=0)
    memory.now = 50
    memory.pool.keep(kept, 500)
    memory.pool.release("b")
    assert memory.pool.next_expiry() == 50
    memory.pool.unload_expired()
    assert (memory.names, memory.pool.next_expiry()) == (["a"], 550)
    assert released not in memory.pool
    assert kept in memory.pool
    assert memory.get("b", at=60) is not released  # it is loaded anew


def test_a_snapshot_tells_what_every_model_does() -> None:
    memory = Memory()
    idle, busy = memory.get("a", at=0), memory.get("b", at=40)
    work(busy)
    busy.scheduler.admit()
    busy.tokenizing = 2
    told = {status.name: status for status in memory.pool.snapshot()}
    assert (told["a"].idle_seconds_left, told["b"].idle_seconds_left) == (60, None)
    assert [(each.running, each.waiting) for each in told.values()] == [(0, 0), (1, 2)]
    assert not memory.pool.idle
    assert idle.idle

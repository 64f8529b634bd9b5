"""Which models stay in memory, and what happens where files change or models die again and again."""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk import Desk
from local_server import eventually, opener, talkative

from localqwen.chat.model_info import LoadedModel
from localqwen.engines.engine import Run, TokenOutput
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import EngineError, NotEnoughMemory, ProcessEnded, SetAside, Unsupported
from localqwen.model_process import file_stamps
from localqwen.serve.api import FOR_EVER
from localqwen.serve.deaths import Deaths
from localqwen.serve.served_model import Limits


class Memory:
    """A machine with room for `room` models; `open` are those that it holds, `opened` all that were ever loaded."""

    def __init__(self, room: int, answers: str = "one two") -> None:
        self.room = room
        self.opened: list[str] = []
        self.engines: dict[str, ScriptedEngine] = {}
        self.answers = answers

    def load(self, name: str) -> LoadedModel:
        if len(self.open) >= self.room:
            raise NotEnoughMemory(f"{name} does not fit")
        self.opened.append(name)
        engine = self.engines[name] = (
            talkative(300) if self.answers == "long" else ScriptedEngine(itertools.repeat(self.answers))
        )
        return opener(engine)(name)

    @property
    def open(self) -> list[str]:
        return [name for name, engine in self.engines.items() if not engine.closed]


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(open_model: Callable[[str], LoadedModel], **limits: Any) -> Desk:
        desks.append(Desk(open_model, Limits(**limits)))
        return desks[-1]

    yield make
    for each in desks:
        each.close()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_model_that_is_idle_for_longest_makes_room(desk: Callable[..., Desk], order: tuple[str, str]) -> None:
    memory = Memory(room=2)
    talk = desk(memory.load)
    for name in ("a", "b", *order, "c"):
        talk.wait(talk.pool.load(name))
    assert sorted(memory.open) == sorted([order[1], "c"])


def test_a_model_that_works_does_not_make_room(desk: Callable[..., Desk]) -> None:
    memory = Memory(room=1, answers="long")
    talk = desk(memory.load)
    job = talk.ask(model="a", think=False)
    talk.started(job)
    with pytest.raises(NotEnoughMemory, match="b does not fit"):
        talk.wait(talk.pool.load("b"))
    talk.cancel(job)
    talk.wait(talk.pool.load("b"))
    assert memory.open == ["b"]


def test_a_model_stays_for_as_long_as_the_last_request_says(desk: Callable[..., Desk]) -> None:
    memory = Memory(room=3)
    talk = desk(memory.load, keep_alive=0.02)
    talk.wait(talk.pool.load("a"))
    talk.wait(talk.pool.load("b", keep_alive=FOR_EVER))
    assert eventually(lambda: memory.open == ["b"])
    assert eventually(lambda: [(each.name, each.idle_seconds_left) for each in talk.loaded()] == [("b", math.inf)])
    talk.call(talk.pool.unload, "b")
    assert eventually(lambda: memory.open == [])
    assert eventually(lambda: talk.loaded() == [])


def test_a_model_that_works_is_unloaded_when_it_has_finished(desk: Callable[..., Desk]) -> None:
    memory = Memory(room=1, answers="long")
    talk = desk(memory.load)
    job = talk.ask(model="a", think=False)
    talk.started(job)
    talk.call(talk.pool.unload, "a")
    [status] = talk.loaded()
    assert (status.running, status.waiting, status.idle_seconds_left) == (1, 0, None)
    assert talk.text(job) == "word " * 300
    assert eventually(lambda: memory.open == [])


def test_an_expired_model_is_unloaded_while_another_one_works(desk: Callable[..., Desk]) -> None:
    memory = Memory(room=2, answers="long")
    talk = desk(memory.load, keep_alive=0.05)
    job = talk.ask(model="a", think=False)
    talk.started(job)
    talk.wait(talk.pool.load("b"))
    assert eventually(lambda: memory.open == ["a"])
    assert not talk.finished(job)


class Dying(ScriptedEngine):
    def step(self) -> list[tuple[Run, TokenOutput]]:
        raise ZeroDivisionError("a bug")


def test_what_had_not_begun_is_tried_once_more(desk: Callable[..., Desk]) -> None:
    """The first process dies in its first step: one request runs then, and one waits."""
    engines = iter([Dying(["a", "b"], max_runs=1), ScriptedEngine(["fine"])])
    talk = desk(lambda name: opener(next(engines))(name))  # noqa: PLW0108  (another one each time)
    first = talk.ask("first", think=False)
    second = talk.ask("second", think=False)
    assert eventually(lambda: talk.error(first) is not None and talk.finished(second))
    assert "while it wrote an answer" in str(talk.error(first))
    assert talk.text(second) == "fine"


def test_a_request_at_work_at_two_deaths_is_refused_and_the_model_goes_on(desk: Callable[..., Desk]) -> None:
    class DyingOf(ScriptedEngine):
        def start(self, prompt: Any, *arguments: Any, **more: Any) -> Run:
            if len(prompt) > 20:
                raise ZeroDivisionError("a bug")
            return super().start(prompt, *arguments, **more)

    class DyingLater(DyingOf):
        def step(self) -> list[tuple[Run, TokenOutput]]:
            if any(len(run.prompt) > 20 for run in self._live):
                raise ZeroDivisionError("a bug")
            return super().step()

        start = ScriptedEngine.start

    talk = desk(lambda name: opener(DyingLater(itertools.repeat("fine")))(name))  # noqa: PLW0108  (another one each time)
    bad = "a b c d e f g h i j k l m n o p"
    for _ in range(2):
        died = talk.ask(bad, think=False)
        assert eventually(lambda died=died: isinstance(talk.error(died), ProcessEnded))
    refused = talk.ask(bad, think=False)
    assert eventually(lambda: isinstance(talk.error(refused), Unsupported))
    assert talk.text(talk.ask("good", think=False)) == "fine"


def test_a_model_that_dies_three_times_is_set_aside_until_it_is_unloaded(desk: Callable[..., Desk]) -> None:
    engines: list[ScriptedEngine] = [Dying(itertools.repeat("a")) for _ in range(3)]
    engines.append(ScriptedEngine(["well again"]))
    rest = iter(engines)
    talk = desk(lambda name: opener(next(rest))(name))  # noqa: PLW0108  (another one each time)
    for number in range(3):
        job = talk.ask(f"question {number}", think=False)
        assert eventually(lambda job=job: isinstance(talk.error(job), ProcessEnded))
    refused = talk.ask("another", think=False)
    assert eventually(lambda: isinstance(talk.error(refused), SetAside))
    error = talk.error(refused)
    assert error is not None
    assert error.http_status == 503
    assert "died 3 times within 10 minutes" in error.message
    assert "exit code 1" in error.message
    assert "unload" in error.hint
    assert list(talk.call(lambda: talk.pool.deaths.aside)) == ["m"]
    talk.call(talk.pool.unload, "m")
    assert talk.text(talk.ask("again", think=False)) == "well again"


def test_deaths_that_are_far_apart_do_not_add_up() -> None:
    moments = iter([0.0, 400.0, 700.0, 900.0])
    deaths = Deaths(clock=lambda: next(moments))
    for _ in range(3):
        deaths.note("m", [], "SIGABRT", "while it loaded the model")
    deaths.check_model("m")
    deaths.note("m", [], "SIGABRT", "while it loaded the model")
    with pytest.raises(SetAside, match="SIGABRT while it loaded the model"):
        deaths.check_model("m")
    deaths.check_model("another")


def test_the_request_is_to_blame_and_not_the_model() -> None:
    deaths = Deaths()
    for _ in range(20):
        deaths.note("m", ["the same"], "SIGSEGV", "")
    deaths.check_model("m")
    assert deaths.causes["m", "SIGSEGV"] == 20
    with pytest.raises(Unsupported, match="died 2 times"):
        deaths.check_request("m", lambda: "the same")
    deaths.check_request("m", lambda: "another")


def test_only_the_last_thousand_requests_are_remembered() -> None:
    deaths = Deaths()
    for number in range(1001):
        for _ in range(2):
            deaths.note("m", [str(number)], "SIGSEGV", "")
    deaths.check_request("m", lambda: "0")
    with pytest.raises(Unsupported):
        deaths.check_request("m", lambda: "1")


def test_a_file_that_changes_is_noticed_and_one_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    stamps = file_stamps.of(file)
    assert file_stamps.change(stamps) is None
    os.utime(file, ns=(1, 1))
    assert file_stamps.change(stamps) == "modified"
    other = tmp_path / "other"
    other.write_bytes(b"GGUF")
    other.replace(file)
    assert file_stamps.change(stamps) == "replaced"
    file.unlink()
    assert file_stamps.change(stamps) is None


class Watched:
    """A model whose file is one of this folder."""

    def __init__(self, folder: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "model.gguf"
        self.file.write_bytes(b"GGUF")
        self.engines: list[ScriptedEngine] = []
        from localqwen.model_process import child

        real = child.Opened
        monkeypatch.setattr(child, "Opened", lambda loaded: real(loaded, file_stamps.of(self.file)))
        self.talk = desk(self._load, prefill_ahead=False)

    def _load(self, name: str) -> LoadedModel:
        self.engines.append(talkative(200))
        return opener(self.engines[-1])(name)


def test_an_answer_ends_where_somebody_writes_into_the_mapped_file(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, desk, monkeypatch)
    job = watched.talk.ask(think=False)
    watched.talk.started(job)
    watched.file.write_bytes(b"GGUF, but other numbers")
    assert eventually(lambda: isinstance(watched.talk.error(job), EngineError))
    assert "written to" in str(watched.talk.error(job))
    assert watched.talk.text(watched.talk.ask("again", think=False)) == "word " * 200
    assert len(watched.engines) == 2


def test_a_replaced_file_is_opened_when_what_has_begun_has_ended(
    tmp_path: Path, desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path, desk, monkeypatch)
    job = watched.talk.ask(think=False)
    watched.talk.started(job)
    other = tmp_path / "other"
    other.write_bytes(b"GGUF of another day")
    other.replace(watched.file)
    later = watched.talk.ask("later", think=False)
    assert watched.talk.text(job) == "word " * 200
    assert watched.talk.text(later) == "word " * 200
    assert [len([run for run in engine.runs if run.max_tokens]) for engine in watched.engines] == [1, 1]

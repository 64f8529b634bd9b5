"""The models of the server, on the scripted engine: queueing, leaving, failing, preparing, stopping."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from desk import Desk
from local_server import SlowEngine, eventually, opener, talkative

from localqwen.chat.messages import Finished, JsonFormat, Message, Request, Started
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.chat.prefill_ahead import next_turn
from localqwen.engines.engine import Engine, Run, TokenOutput
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import Busy, EngineError, NotEnoughMemory, ProcessEnded
from localqwen.serve.api import ParsedRequest
from localqwen.serve.served_model import Limits

T = TypeVar("T")


Open = Callable[..., Desk]


@pytest.fixture
def desk() -> Iterator[Open]:
    desks: list[Desk] = []

    def make(engine: Engine | Callable[[str], LoadedModel], **limits: Any) -> Desk:
        open_model = engine if callable(engine) else opener(engine)
        desks.append(Desk(open_model, Limits(**limits)))
        return desks[-1]

    yield make
    for each in desks:
        each.close()


def test_answers_run_beside_each_other_and_their_events_come_in_order(desk: Open) -> None:
    talk = desk(ScriptedEngine(["one two three", "vier fünf"]))
    first, second = talk.ask("a", think=False), talk.ask("b", think=False)
    assert {talk.text(first), talk.text(second)} == {"one two three", "vier fünf"}
    assert isinstance(talk.events(first)[0], Started)
    assert isinstance(talk.events(first)[-1], Finished)


def test_a_client_that_leaves_frees_its_run_at_once(desk: Open) -> None:
    engine = talkative()
    talk = desk(engine, prefill_ahead=False)
    job = talk.ask(think=False)
    talk.started(job)
    talk.cancel(job)
    assert eventually(lambda: engine.runs[0].finished)
    count = len(talk.came[job])
    time.sleep(0.05)
    assert len(talk.came[job]) == count
    assert not talk.finished(job)


def test_whoever_loads_a_model_or_counts_tokens_learns_why_it_cannot_be_loaded(desk: Open) -> None:
    def refuse(name: str) -> LoadedModel:
        raise EngineError(f"the file of {name} is damaged")

    talk = desk(refuse)
    pool, request = talk.pool, Request([Message("user", "hi")])
    for each in (talk.later(pool.load("m")), talk.later(pool.count("m", request))):
        with pytest.raises(EngineError, match="the file of m is damaged"):
            each.result(60)


def test_what_waits_can_leave_too(desk: Open) -> None:
    engine = talkative(max_runs=1)
    talk = desk(engine)
    first, second = talk.ask(think=False), talk.ask(think=False)
    talk.started(first)
    talk.cancel(second)
    talk.cancel(first)
    assert eventually(lambda: all(model.idle_seconds_left is not None for model in talk.loaded()))
    assert len([run for run in engine.runs if run.max_tokens]) == 1


def test_a_full_queue_says_so_and_when_to_come_again(desk: Open) -> None:
    talk = desk(talkative(max_runs=1), queue=1)
    running = talk.ask(think=False)
    talk.started(running)
    talk.ask(think=False)
    refused = talk.ask(think=False)
    assert eventually(lambda: isinstance(talk.error(refused), Busy))
    error = talk.error(refused)
    assert isinstance(error, Busy)
    assert error.http_status == 503
    assert error.retry_after > 0


def test_the_next_one_starts_when_a_run_is_free(desk: Open) -> None:
    talk = desk(ScriptedEngine(["a", "b", "c"], max_runs=1))
    assert [talk.text(job) for job in [talk.ask(think=False) for _ in range(3)]] == ["a", "b", "c"]


def test_several_answers_to_one_prompt_wait_until_the_first_has_read_it(desk: Open) -> None:
    class Noting(ScriptedEngine):
        def start(self, *args: Any, **fields: Any) -> Run:
            read.append([run.prefilled == run.prompt_tokens for run in self.runs])
            return super().start(*args, **fields)

    read: list[list[bool]] = []
    talk = desk(Noting(["x", "y", "z"], prefill=4), prefill_ahead=False)
    job = talk.ask("a b c d e f g h", answers=3, think=False)
    assert [talk.text(job, index) for index in range(3)] == ["x", "y", "z"]
    assert [before[:1] for before in read] == [[], [True], [True]]


def test_an_engine_that_fails_takes_its_own_answers_with_it_and_is_opened_anew(desk: Open) -> None:
    class Broken(ScriptedEngine):
        def step(self) -> list[tuple[Run, TokenOutput]]:
            raise EngineError("the card fell out")

    engines: list[Engine] = [Broken(["a", "b"]), ScriptedEngine(["fine"])]
    opened = iter([LoadedModel(engine, info_of(engine, "m")) for engine in engines])
    talk = desk(lambda name: next(opened))
    broken = talk.ask(think=False)
    assert eventually(lambda: isinstance(talk.error(broken), EngineError))
    assert talk.text(talk.ask(think=False)) == "fine"
    assert engines[0].closed  # type: ignore[attr-defined]


def test_an_answer_whose_grammar_fails_fails_alone(desk: Open) -> None:
    class Telling(SlowEngine):
        """Tells a run's constraint what was drawn, though the script stands."""

        def step(self) -> list[tuple[Run, TokenOutput]]:
            stepped = super().step()
            for run, piece in stepped:
                for token in piece.tokens if run.constraint is not None else ():
                    run.constraint.accept(token)  # type: ignore[union-attr]
            return stepped

    engine = Telling(["word " * 100, "this is no JSON"])
    talk = desk(engine, prefill_ahead=False)
    beside = talk.ask(think=False)
    talk.started(beside)
    held = talk.ask(think=False, format=JsonFormat())
    assert eventually(lambda: talk.error(held) is not None)
    assert "grammar failed" in str(talk.error(held))
    assert talk.text(beside) == "word " * 100
    assert not engine.closed


def test_a_request_that_cannot_be_rendered_fails_alone(desk: Open) -> None:
    talk = desk(ScriptedEngine(["a"], context_length=30))
    long = talk.ask("word " * 100)
    assert eventually(lambda: talk.error(long) is not None)
    error = talk.error(long)
    assert error is not None
    assert "30" in error.message
    assert talk.text(talk.ask(think=False)) == "a"


def test_a_model_that_is_idle_is_unloaded(desk: Open) -> None:
    engine = ScriptedEngine(["a"])
    talk = desk(engine, keep_alive=0.02)
    talk.text(talk.ask(think=False))
    assert eventually(lambda: engine.closed)
    assert eventually(lambda: talk.loaded() == [])


def test_idle_models_make_room_for_the_one_that_is_asked_for(desk: Open) -> None:
    engines = {"a": ScriptedEngine(["from a"]), "b": ScriptedEngine(["from b"])}

    def open_model(name: str) -> LoadedModel:
        if name == "b" and not engines["a"].closed:
            raise NotEnoughMemory("b does not fit beside a")
        return opener(engines[name])(name)

    talk = desk(open_model)
    assert talk.text(talk.ask(model="a", think=False)) == "from a"
    assert talk.text(talk.ask(model="b", think=False)) == "from b"


def test_a_model_that_cannot_be_opened_is_an_answer(desk: Open) -> None:
    def open_model(name: str) -> LoadedModel:
        raise EngineError(f"{name} is damaged")

    talk = desk(open_model)
    job = talk.ask()
    assert eventually(lambda: talk.error(job) is not None)
    assert str(talk.error(job)) == "m is damaged"


def test_the_thinking_of_a_running_answer_can_be_ended(desk: Open) -> None:
    engine = SlowEngine(["<think>\n" + "hm " * 500, "The answer."])
    talk = desk(engine)
    job = talk.ask()
    talk.started(job)
    assert talk.wait(talk.pool.end_thinking(job.id))
    assert talk.text(job) == "The answer."
    assert not talk.wait(talk.pool.end_thinking("unknown"))


def test_stopping_lets_running_answers_end_and_refuses_the_others(desk: Open) -> None:
    engine = talkative(20, max_runs=1)
    talk = desk(engine)
    running, waiting = talk.ask(think=False), talk.ask(think=False)
    talk.started(running)
    stopping = talk.later(talk.pool.stop(5))
    late = talk.ask(think=False)
    stopping.result(10)
    assert talk.finished(running)
    assert isinstance(talk.error(waiting), Busy)
    assert eventually(lambda: engine.closed)
    assert isinstance(talk.error(late), Busy)


def test_stopping_waits_only_so_long(desk: Open) -> None:
    talk = desk(talkative())
    job = talk.ask(think=False)
    talk.started(job)
    talk.wait(talk.pool.stop(0.05))
    assert eventually(lambda: isinstance(talk.error(job), Busy))


def test_a_bug_in_a_model_ends_its_process_and_nothing_else(desk: Open) -> None:
    class Buggy(ScriptedEngine):
        def step(self) -> list[tuple[Run, TokenOutput]]:
            raise ZeroDivisionError("a bug")

    engines = {"m": Buggy(["a"]), "other": talkative(30)}
    talk = desk(lambda name: opener(engines[name])(name))
    beside = talk.ask(model="other", think=False)
    job = talk.ask(think=False)
    assert eventually(lambda: isinstance(talk.error(job), ProcessEnded))
    assert "ZeroDivisionError: a bug" in str(talk.error(job))
    assert "m" in str(talk.error(job))
    assert talk.text(beside) == "word " * 30


def test_a_bug_while_a_model_is_opened_is_an_error(desk: Open) -> None:
    def open_model(name: str) -> LoadedModel:
        raise ZeroDivisionError("a bug")

    talk = desk(open_model)
    with pytest.raises(ProcessEnded, match="while it loaded the model"):
        talk.wait(talk.pool.load("m"))


def test_a_bug_in_the_server_leaves_nobody_waiting(desk: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(name: str) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr("desk.starting", lambda open_model: broken)
    talk = desk(ScriptedEngine(["a"]))
    job = talk.ask(think=False)
    assert eventually(lambda: isinstance(talk.error(job), EngineError))
    with pytest.raises(EngineError, match="the server failed"):
        talk.wait(talk.pool.load("m"))


def test_the_next_turn_is_read_while_nobody_waits(desk: Open) -> None:
    engine = ScriptedEngine(["<think>\nhm\n</think>\n\nAn answer of six words.", "Good."])
    talk = desk(engine)
    talk.text(talk.ask("a question"))
    prepared = next_turn(
        Request([Message("user", "a question")]),
        Message("assistant", "An answer of six words."),
        info_of(engine, "m"),
        thinking=True,
    )
    assert eventually(lambda: engine.runs[-1].prompt == prepared and engine.runs[-1].prefilled == len(prepared))
    assert not any(run.max_tokens for run in engine.runs[1:])
    history = [Message("user", "a question"), Message("assistant", "An answer of six words."), Message("user", "Sure?")]
    job = talk.submit(ParsedRequest("m", Request(history)))
    started = talk.started(job)
    assert started.cached_tokens == len(prepared)
    assert started.cached_tokens > engine.runs[0].prompt_tokens + 5


def test_nothing_is_read_ahead_where_it_is_switched_off(desk: Open) -> None:
    engine = ScriptedEngine(["a", "b"])
    talk = desk(engine, prefill_ahead=False)
    talk.text(talk.ask(think=False))
    talk.text(talk.ask(think=False))
    assert len(engine.runs) == 2


def test_reading_ahead_gives_way_to_real_work_and_goes_on_afterwards(desk: Open) -> None:
    engine = SlowEngine(itertools.repeat("word " * 150), prefill=4)
    engine.seconds = 0.004
    talk = desk(engine)
    talk.text(talk.ask(think=False))
    assert eventually(lambda: len(engine.runs) > 3)
    other = talk.ask("other", think=False)
    talk.started(other)
    before = len(engine.runs)
    read = max(run.prompt_tokens for run in engine.runs if not run.max_tokens and run.prefilled == run.prompt_tokens)
    assert read < 150
    time.sleep(0.1)
    assert len(engine.runs) == before
    talk.text(other)
    whole = next_turn(
        Request([Message("user", "hi")], think=False),
        Message("assistant", "word " * 150),
        info_of(engine, "m"),
        thinking=False,
    )
    assert eventually(lambda: any(run.prompt == whole and run.prefilled == len(whole) for run in engine.runs))


def test_an_idle_worker_does_not_spin(desk: Open) -> None:
    talk = desk(ScriptedEngine(["a"]))
    talk.text(talk.ask(think=False))
    assert eventually(lambda: talk.loaded()[0].idle_seconds_left is not None)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1

"""A model in this process: read from any thread, closed at any time, forgotten, forked, left open at the end."""

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from local_server import SlowEngine, eventually

import localqwen
from localqwen.chat.answer import Answer
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Finished, Message, PrefillProgress, Request, Started, Text
from localqwen.engines.engine import Run, TokenOutput
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import Busy, EngineError, LocalqwenError, UsageError


def ask(text: str = "hi", **fields: Any) -> Request:
    return Request([Message("user", text)], think=False, **fields)


def slow(words: int = 2000, **options: Any) -> SlowEngine:
    return SlowEngine(itertools.repeat("word " * words), **options)


def test_it_is_a_context_manager_and_may_be_closed_again() -> None:
    engine = ScriptedEngine(["Hello."])
    with LocalChatModel(engine, "m") as model:
        assert Answer.of(model.stream(ask())).content == "Hello."
        assert not engine.closed
    assert engine.closed
    model.close()


CALLS: dict[str, Callable[[LocalChatModel], object]] = {
    "stream": lambda model: model.stream(ask()),
    "preset": lambda model: model.preset(ask()),
    "end_thinking": lambda model: model.end_thinking(),
    "backend_description": lambda model: model.backend_description,
    "prefill_ahead": lambda model: model.prefill_ahead(ask(), Message("assistant", "x")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_call_of_a_closed_model_says_so(call: Callable[[LocalChatModel], object]) -> None:
    model = LocalChatModel(ScriptedEngine([]), "m")
    model.close()
    with pytest.raises(EngineError, match="m is closed") as error:
        call(model)
    assert error.value.hint


def test_closing_ends_the_answers_that_stream() -> None:
    engine = ScriptedEngine(itertools.repeat("one two three"))
    model = LocalChatModel(engine, "m")
    begun, unread, not_begun = model.stream(ask()), model.stream(ask()), model.stream(ask())
    next(begun)
    next(unread)
    next(begun)  # leaves an event for the other one
    model.close()
    for stream in (begun, unread, not_begun):
        with pytest.raises(EngineError, match="closed"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
    assert all(run.finished for run in engine.runs)


def test_a_reader_that_waits_is_woken_when_another_thread_closes_the_model() -> None:
    model = LocalChatModel(slow(), "m")
    errors: list[LocalqwenError] = []
    reading = threading.Event()

    def read() -> None:
        try:
            for _ in model.stream(ask()):
                reading.set()
        except LocalqwenError as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    assert reading.wait(10)
    closers = [threading.Thread(target=model.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in (*closers, *readers):
        thread.join(10)
        assert not thread.is_alive()
    assert [error.message for error in errors] == ["m is closed"] * 3


def test_a_model_may_be_closed_by_the_reader_of_its_answer() -> None:
    model = LocalChatModel(ScriptedEngine(["one two three"]), "m")
    stream = model.stream(ask())
    assert isinstance(next(event for event in stream if isinstance(event, Text)), Text)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        next(stream)


def test_an_answer_goes_no_further_than_it_is_read() -> None:
    engine = ScriptedEngine(["a b c d e f"])
    stream = LocalChatModel(engine, "m").stream(ask())
    assert engine.runs == []
    assert isinstance(next(stream), Started)
    assert engine.runs[0].generated == 0
    next(stream)
    time.sleep(0.05)
    assert engine.runs[0].generated == 1


def test_an_answer_that_is_forgotten_half_read_frees_its_run() -> None:
    engine = ScriptedEngine(["a b c", "d e f"], max_runs=1)
    model = LocalChatModel(engine, "m")
    stream = model.stream(ask())
    next(stream)
    del stream
    gc.collect()
    assert eventually(lambda: engine.runs[0].finished)
    assert Answer.of(model.stream(ask())).content == "d e f"
    assert engine.runs[0].generated == 0


def test_an_exception_thrown_into_an_answer_ends_it() -> None:
    """As it does in a generator: the next answer need not wait for the rest of this one."""
    engine = slow(max_runs=1)
    with LocalChatModel(engine, "m") as model:
        stream = model.stream(ask())
        next(stream)
        with pytest.raises(KeyError, match="enough"):
            stream.throw(KeyError("enough"))
        assert engine.runs[0].finished
        assert isinstance(next(model.stream(ask())), PrefillProgress | Started)


def test_a_closed_answer_ends_for_its_reader_too() -> None:
    model = LocalChatModel(slow(), "m")
    stream = model.stream(ask())
    came: list[object] = []
    reader = threading.Thread(target=lambda: came.extend(stream))
    reader.start()
    assert eventually(lambda: len(came) > 0 or model.engine.runs != [])  # type: ignore[attr-defined]
    stream.close()
    reader.join(10)
    assert not reader.is_alive()
    assert not any(isinstance(event, Finished) for event in came)


def test_twenty_threads_are_answered_as_many_at_once_as_there_are_runs() -> None:
    class Counting(ScriptedEngine):
        most = 0

        def step(self) -> list[tuple[Run, TokenOutput]]:
            Counting.most = max(Counting.most, len(self._live))
            threads.add(threading.get_ident())
            return super().step()

    threads: set[int] = set()
    model = LocalChatModel(Counting(itertools.repeat("one two three"), max_runs=3), "m")
    came: list[str] = []
    readers = [threading.Thread(target=lambda: came.append(Answer.of(model.stream(ask())).content)) for _ in range(20)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert came == ["one two three"] * 20
    assert Counting.most <= 3
    assert len(threads) == 1


def test_an_answer_waits_for_a_run_that_is_read_no_further() -> None:
    """One thread, one run: the half-read answer is computed to its end and kept for its reader."""
    model = LocalChatModel(ScriptedEngine(["one two", "three four"], max_runs=1), "m")
    first = model.stream(ask())
    begun = [next(first), next(first)]
    assert Answer.of(model.stream(ask())).content == "three four"
    assert Answer.of([*begun, *first]).content == "one two"  # type: ignore[list-item]


def test_progress_does_not_pile_up_for_a_reader_that_is_behind() -> None:
    engine = ScriptedEngine(["<tool_call>" + "x " * 200, "y " * 300], max_runs=2)
    model = LocalChatModel(engine, "m")
    idle = model.stream(ask())
    next(idle)
    list(model.stream(ask()))
    held = list(idle)
    assert sum(isinstance(event, PrefillProgress) for event in held) <= 2


def test_a_full_queue_is_busy_with_a_hint() -> None:
    model = LocalChatModel(slow(max_runs=1), "m", queue=1)
    running = model.stream(ask())
    next(running)

    def read() -> None:
        with contextlib.suppress(EngineError):  # of the model that is closed below
            list(model.stream(ask()))

    waiting = threading.Thread(target=read)
    waiting.start()
    assert eventually(lambda: model._thread.call(lambda scheduler: scheduler.waiting) == 1)
    with pytest.raises(Busy, match="m answers 1 at once and 1 wait already") as error:
        next(model.stream(ask()))
    assert "parallel=2" in error.value.hint
    model.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_reader_that_was_served_meanwhile_makes_nobody_compute() -> None:
    """Its wish for more crosses the last events: without them counted, the engine would be stepped for ever."""
    model = LocalChatModel(ScriptedEngine(["a"]), "m")
    stream, thread = model.stream(ask()), model._thread
    list(stream)
    thread.call(lambda _: thread._want(stream._outlet, stream._outlet.given - 1, None))
    assert thread._readers == set()


def test_a_call_that_crosses_the_closing_is_refused() -> None:
    model = LocalChatModel(ScriptedEngine(["a"]), "m")
    thread, late = model._thread, Future[None]()

    def close_before_the_next_message(_: object) -> None:
        thread._inbox.put(partial(thread._carry_out, lambda _: None, late))
        thread.stop()

    thread.call(close_before_the_next_message)
    assert isinstance(late.exception(10), EngineError)


def test_two_threads_cannot_read_one_answer() -> None:
    model = LocalChatModel(slow(), "m")
    stream = model.stream(ask())
    next(stream)
    assert stream._reading.acquire(blocking=False)  # as if the other one were in the middle of it
    with pytest.raises(UsageError, match="two threads read one answer"):
        next(stream)
    stream._reading.release()
    next(stream)
    model.close()


def test_the_thinking_of_one_of_several_answers_can_be_ended() -> None:
    model = LocalChatModel(ScriptedEngine(["<think>a b c d", "<think>e f g h", "One.", "Two."]), "m")
    first, second = (model.stream(Request([Message("user", text)])) for text in "12")
    begun = [[next(stream), next(stream)] for stream in (first, second)]
    first.end_thinking()
    assert "Considering the limited time" in Answer.of([*begun[0], *first]).thinking
    assert Answer.of([*begun[1], *second]).thinking == "e f g h"


def test_an_engine_that_fails_ends_its_answers_and_answers_the_next() -> None:
    class Failing(ScriptedEngine):
        def step(self) -> list[tuple[Run, TokenOutput]]:
            if fail:
                raise fail.pop()
            return super().step()

    fail: list[Exception] = []
    model = LocalChatModel(Failing(itertools.repeat("fine")), "m")
    for error in (EngineError("the card fell out"), ZeroDivisionError("a bug")):
        streams = [model.stream(ask()), model.stream(ask())]
        for stream in streams:
            next(stream)
        fail.append(error)
        for stream in streams:
            with pytest.raises(type(error), match=str(error)):
                next(stream)
        assert Answer.of(model.stream(ask())).content == "fine"


def test_the_engine_is_opened_stepped_and_closed_in_one_thread() -> None:
    class Noting(ScriptedEngine):
        def step(self) -> list[tuple[Run, TokenOutput]]:
            threads.append(threading.get_ident())
            return super().step()

        def close(self) -> None:
            threads.append(threading.get_ident())
            super().close()

    def open_engine() -> ScriptedEngine:
        threads.append(threading.get_ident())
        return Noting(["hi"])

    threads: list[int] = []
    with LocalChatModel(open_engine, "m") as model:
        list(model.stream(ask()))
        assert model.load_ms > 0
    assert len(threads) > 3
    assert {*threads} == {threads[0]} != {threading.get_ident()}


def test_what_stands_against_opening_is_raised_where_the_model_is_made() -> None:
    def broken() -> ScriptedEngine:
        raise EngineError("the file is damaged")

    with pytest.raises(EngineError, match="the file is damaged"):
        LocalChatModel(broken, "m")
    with pytest.raises(ZeroDivisionError):
        LocalChatModel(lambda: 1 // 0, "m")  # type: ignore[arg-type,return-value]


def test_a_forgotten_model_closes_the_engine_that_it_opened_and_no_other() -> None:
    given = ScriptedEngine(["a"])
    opened: list[ScriptedEngine] = []

    def open_engine() -> ScriptedEngine:
        opened.append(ScriptedEngine(["a"]))
        return opened[0]

    threads = []
    for engine in (given, open_engine):
        model = LocalChatModel(engine, "m")  # type: ignore[arg-type]
        list(model.stream(ask()))
        threads.append(model._thread)
        del model
    gc.collect()
    assert eventually(lambda: not any(thread.alive for thread in threads))
    assert (given.closed, opened[0].closed) == (False, True)


def test_a_model_lives_as_long_as_its_answer() -> None:
    stream = LocalChatModel(lambda: ScriptedEngine(["one two"]), "m").stream(ask())
    next(stream)
    gc.collect()
    assert Answer.of(stream).content == "one two"


def test_the_first_answer_says_what_opening_had_to_warn_of() -> None:
    model = LocalChatModel(ScriptedEngine(["a", "b"], warnings=("stretched",)), "m")
    warnings = [next(model.stream(ask())).warnings for _ in range(2)]  # type: ignore[union-attr]
    assert warnings == [("stretched",), ()]


def test_prefill_ahead_gives_way_to_an_answer() -> None:
    model = LocalChatModel(ScriptedEngine(["x " * 50, "y"], max_runs=2), "m")
    answer = Answer.of(model.stream(ask()))
    ahead = model.prefill_ahead(ask(), answer.message())
    next(ahead)
    running = model.stream(ask("other"))
    next(running)
    assert list(ahead) == []
    list(running)
    assert len(list(model.prefill_ahead(ask(), answer.message()))) > 0


@pytest.fixture(params=["gguf", pytest.param("mlx")])
def demo(request: pytest.FixtureRequest) -> Iterator[LocalChatModel]:
    with localqwen.load(Path("demo"), engine=request.param, context_length=256, threads=1, parallel=2) as model:
        yield model


def test_the_demo_answers_from_several_threads_and_is_closed_in_the_middle(demo: LocalChatModel) -> None:
    from localqwen import SamplingOverrides

    greedy = SamplingOverrides(temperature=0)
    came: dict[int, str] = {}

    def read(number: int) -> None:
        request = Request([Message("user", f"What is {number} + 1?")], think=False, sampling=greedy)
        came[number] = Answer.of(demo.stream(request)).content

    readers = [threading.Thread(target=read, args=(number,)) for number in (10, 20, 30)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    assert sorted(came) == [10, 20, 30]
    assert all(text.startswith(f"{number} + 1 = ") for number, text in came.items())
    half_read = demo.stream(ask("What is 17 + 25?"))
    next(half_read)
    next(half_read)
    assert demo.backend_description
    demo.close()
    with pytest.raises(EngineError, match="demo is closed"):
        next(half_read)
    with pytest.raises(EngineError, match="demo is closed"):
        demo.stream(ask())


PROGRAM = """
import itertools, os, signal, sys, threading, time
from localqwen import Message, Request
from localqwen.chat.local import LocalChatModel
from localqwen.engines.scripted import ScriptedEngine

class Slow(ScriptedEngine):
    def step(self):
        time.sleep(0.005)
        return super().step()

def load(): return LocalChatModel(lambda: Slow(itertools.repeat("word " * 50)), "m")
def ask(): return Request([Message("user", "hi")], think=False)
"""


def run(program: str, *, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        capture_output=True, text=True, env=environment, timeout=seconds, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        "model = load()",
        "model = load(); stream = model.stream(ask()); next(stream)",
        "model = load()\n"
        "threading.Thread(target=lambda: list(model.stream(ask())), daemon=True).start()\n"
        "time.sleep(0.1)",
        "next(load().stream(ask()))",
    ],
    ids=["idle", "half read", "read by another thread", "forgotten"],
)
def test_a_program_that_never_closes_its_model_ends(program: str) -> None:
    done = run(program)
    assert done.returncode == 0
    assert "Fatal" not in done.stderr


def test_the_threads_of_a_program_get_their_answers_before_it_ends() -> None:
    done = run("model = load()\nthreading.Thread(target=lambda: print(len(list(model.stream(ask()))))).start()")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50


def test_a_forked_process_is_told_to_load_the_model_itself() -> None:
    done = run(
        "model = load(); stream = model.stream(ask()); next(stream)\n"
        "child = os.fork()\n"
        "for call in (lambda: next(stream), lambda: model.stream(ask())):\n"
        "    try: call(); said = 'answered'\n"
        "    except Exception as error: said = error\n"
        "    os.write(1, f'{said} {bool(child)}\\n'.encode())\n"  # one write, which the other process cannot divide
        "model.close()\n"
        "if child: os.waitpid(child, 0)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [
        "answered True", "answered True",
        *["m was loaded before this process was forked False"] * 2,
    ]  # fmt: skip


def test_ctrl_c_while_a_model_is_opened_ends_at_once() -> None:
    done = run(
        "def forever(): os.kill(os.getpid(), signal.SIGINT); time.sleep(50)\n"
        "try: LocalChatModel(forever, 'm')\n"
        "except KeyboardInterrupt: print('stopped')\n",
        seconds=40,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_ctrl_c_while_a_reader_waits_ends_its_answer() -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    engine = ScriptedEngine(["a b c", "d"])
    model = LocalChatModel(engine, "m")
    stream = model.stream(ask())
    next(stream)
    real, model._thread.take = model._thread.take, lambda outlet: interrupt() or ()  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    model._thread.take = real  # type: ignore[method-assign]
    assert eventually(lambda: engine.runs[0].finished)
    with pytest.raises(StopIteration):
        next(stream)
    assert Answer.of(model.stream(ask())).content == "d"


def test_the_names_of_the_first_version_mean_the_same() -> None:
    with LocalChatModel(ScriptedEngine(["x"]), "m", thinking_mode="never") as model:
        assert model.setup == model.backend_description
    assert LocalChatModel.read_ahead is LocalChatModel.prefill_ahead

"""Foreign Python code is interrupted when its time is over, in any thread, and never after it has returned."""

import random
import subprocess
import sys
import threading
import time

import pytest

from localqwen.chat import time_limit
from localqwen.chat.time_limit import TimeExceeded, within

FOREVER = 10**12
LIMITS = (0, 0.0001, 0.0005, 0.001, 60)


def count(steps: int) -> int:
    """Take the steps in Python code."""
    for _ in range(steps):
        pass
    return steps


class Finalized:
    """An object whose finalizer takes a while: what is raised there is dropped."""

    def __del__(self) -> None:
        count(2_000)


def finalize_forever() -> None:
    while True:
        Finalized()
        count(2_000)


def test_a_result_and_an_error_come_through() -> None:
    assert within(60, lambda: count(7)) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)


def test_an_endless_call_is_interrupted_in_the_main_thread() -> None:
    with pytest.raises(TimeExceeded, match=r"more than 0\.05 s"):
        within(0.05, lambda: count(FOREVER))


def test_an_endless_call_is_interrupted_in_another_thread_while_others_go_on() -> None:
    ended: list[str] = []

    def run() -> None:
        try:
            within(0.05, lambda: count(FOREVER))
        except TimeExceeded:
            ended.append("late")

    thread = threading.Thread(target=run)
    thread.start()
    assert within(60, lambda: count(100_000)) == 100_000
    thread.join()
    assert ended == ["late"]


def test_code_that_catches_every_exception_is_interrupted() -> None:
    def stubborn() -> None:
        while True:
            try:
                count(FOREVER)
            except Exception:  # what a foreign program may do
                continue

    with pytest.raises(TimeExceeded):
        within(0.02, stubborn)


def test_an_interruption_that_a_finalizer_swallows_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: swallowed.append(found.exc_type))
    monkeypatch.setattr(time_limit, "_PATIENCE", 0)
    for _ in range(20):
        with pytest.raises(TimeExceeded):
            within(0.001, finalize_forever)
    assert swallowed


def test_the_end_of_a_finalizer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a finalizer, of any object that dies by chance, would be reported on stderr."""
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: swallowed.append(found.exc_type))
    monkeypatch.setattr(time_limit, "_PATIENCE", 60)
    for _ in range(50):
        with pytest.raises(TimeExceeded):
            within(0.001, finalize_forever)
    assert len(swallowed) < 10


def endings(calls: int, seed: int) -> int:
    """Make calls that end about when their time does. Return how many were interrupted."""
    choose = random.Random(seed)
    interrupted = 0
    for _ in range(calls):
        steps = choose.choice((0, 10, 1_000, 10_000))
        try:
            assert within(choose.choice(LIMITS), lambda steps=steps: count(steps)) == steps  # type: ignore[misc]
        except TimeExceeded:
            interrupted += 1
        count(20)  # where a late interruption would arrive
    return interrupted


def test_no_interruption_arrives_after_the_call_in_many_races() -> None:
    """Several thousand calls in three threads end while the watchdog fires: nothing is raised behind them."""
    results: list[int] = []
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            results.append(endings(2_000, seed))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    run(3)
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(results) > 0


def test_one_thread_watches_all_calls() -> None:
    def watchdogs() -> int:
        return sum(thread.name == "localqwen-time-limit" for thread in threading.enumerate())

    within(60, lambda: None)
    assert {within(60, watchdogs) for _ in range(100)} == {1}


def test_ctrl_c_interrupts_a_watched_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal reaches the main thread between two bytecodes, and the call is not watched any more."""
    import signal

    timer = threading.Timer(0.05, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        within(1, lambda: count(FOREVER))
    time.sleep(1.1)


def test_a_process_goes_on_after_an_interruption_while_coverage_traces_it() -> None:
    """In a process of its own: where it fails, no thread of the process goes on."""
    code = (
        "import coverage\n"
        "from localqwen.chat.time_limit import TimeExceeded, within\n"
        "def endless():\n"
        "    while True: len('')\n"
        "coverage.Coverage(data_file=None, branch=True).start()\n"
        "for _ in range(5):\n"
        "    try: within(0.05, endless)\n"
        "    except TimeExceeded: pass\n"
        "print('went on')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "went on\n"

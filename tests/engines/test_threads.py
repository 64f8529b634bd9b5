"""Threads give way to other programs and come back: the rule on made-up loads, and the engine that follows it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from resolved import file_of

from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp.engine import OwnModelEngine
from localqwen.engines.llama_cpp.settings import Settings
from localqwen.engines.llama_cpp.threads import INTERVAL, STALE, Threads, suited, watched
from localqwen.machine.cpu_time import CpuTime


@pytest.mark.parametrize(
    ("present", "limit", "cpus", "others", "expected"),
    [
        (2, 2, 2, 0.0, 2),
        (2, 2, 2, 0.3, 2),  # noise of a desktop
        (2, 2, 2, 0.67, 1),  # one program beside two threads gets two thirds of a core
        (1, 2, 2, 1.0, 1),  # and a whole one when a thread has gone
        (1, 2, 2, 0.3, 1),  # not yet
        (1, 2, 2, 0.1, 2),
        (8, 8, 8, 1.0, 7),
        (3, 4, 4, 1.0, 3),
        (4, 4, 8, 3.0, 4),  # the other half of the logical CPUs is enough
        (4, 4, 4, 9.0, 1),  # one is left in any case
        (1, 4, 4, 0.0, 4),
    ],
)
def test_every_thread_has_a_core(present: int, limit: int, cpus: int, others: float, expected: int) -> None:
    assert suited(present, limit, cpus, others) == expected


@dataclass
class System:
    """A machine's accounting, moved by hand."""

    time: float = 0.0
    busy: float = 0.0
    own: float = 0.0

    def work(self, seconds: float, own: float, others: float) -> None:
        self.time += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds

    def sample(self) -> CpuTime:
        return CpuTime(self.time, self.busy, self.own)


def test_threads_follow_the_load_within_a_second() -> None:
    system = System()
    governed = Threads(2, 2, system.sample, lambda: system.time)
    counts = []
    for others in (0, 0, 0.67, 1, 1, 0, 0):
        system.work(INTERVAL, own=2 - others, others=others)
        counts.append(governed.now())
    assert counts == [2, 2, 1, 1, 1, 2, 2]


def test_between_two_looks_nothing_is_read() -> None:
    system = System()
    governed = Threads(2, 2, system.sample, lambda: system.time)
    system.work(INTERVAL / 2, own=0, others=2)
    assert governed.now() == 2
    system.work(INTERVAL / 2, own=0, others=2)
    assert governed.now() == 1


def test_what_happened_while_nobody_asked_is_forgotten() -> None:
    system = System()
    governed = Threads(2, 2, system.sample, lambda: system.time)
    system.work(STALE * 2, own=0, others=2)
    assert governed.now() == 2


def test_this_machine_tells_what_its_processors_do() -> None:
    assert watched(1) is None
    governed = watched(2)
    assert governed is None or 1 <= governed.now() <= 2


def test_an_answer_is_the_same_when_the_threads_change_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    governed = Threads(2, 2, system.sample, lambda: system.time)
    monkeypatch.setattr("localqwen.engines.llama_cpp.context.watched", lambda limit: governed)
    answers = []
    for adapt in (False, True):
        engine = OwnModelEngine(file_of("demo"), Settings(2, adapt_threads=adapt), context_length=512)
        run, pieces, seen = engine.start([5, 6, 7], Sampling(seed=3), max_tokens=12), [], set()
        while not run.finished:
            pieces += [piece.tokens for _, piece in engine.step()]
            system.work(INTERVAL, own=1, others=len(pieces) % 2)
            seen.add(engine.threads)
        answers.append(pieces)
        assert seen == ({1, 2} if adapt else {2})
        engine.close()
    assert answers[0] == answers[1]

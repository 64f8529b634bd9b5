"""Rounds of attacks, each repeatable by its seed, and what they showed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from attacks.client import SILENT, Seen
from attacks.kinds import KINDS
from attacks.server import Measured, Server, eventually
from attacks.target import Target

#: Rounds between two measurements of the server; it is quiet then.
BLOCK = 100


@dataclass(frozen=True)
class Round:
    """One attack: number `number` of the seed, of the kind `kind`."""

    seed: int
    number: int
    kind: str

    @property
    def repeat(self) -> str:
        """The flags that repeat it."""
        return f"--seed {self.seed} --first {self.number} --rounds 1 --only {self.kind!r}"

    def problems(self, seen: Sequence[Seen]) -> list[str]:
        """Return what was not expected, with the flags that repeat it, at most one line: the others follow from it."""
        found = [each.problem for each in seen if each.problem]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return [f"{self.kind}: {found[0]}{more}\n    {self.repeat}"] if found else []

    def generator(self) -> Random:
        """Return the random generator of this round, which depends on nothing else."""
        return Random(f"{self.seed}/{self.number}/{self.kind}")


@dataclass
class Kind:
    """What the rounds of one kind showed."""

    rounds: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Results:
    """What all rounds showed. `measured` has the number of rounds before each measurement, `played` each round with its
    begin and end in seconds since 1970."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    measured: list[tuple[int, Measured]] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    played: list[tuple[Round, float, float]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that was not expected."""
        return [problem for kind in self.kinds.values() for problem in kind.problems] + self.deaths

    def during(self, begin: float, end: float) -> list[Round]:
        """Return the rounds that ran between two moments."""
        return [played for played, began, ended in self.played if began <= end and ended >= begin]

    def note(self, played: Round, seen: Sequence[Seen], began: float) -> None:
        """Keep what one round showed that began at this moment and ends now."""
        self.played.append((played, began, time.time()))
        kind = self.kinds.setdefault(played.kind, Kind())
        kind.rounds += 1
        kind.seconds.append(time.time() - began)
        kind.statuses.update(each.status for each in seen)
        kind.problems += played.problems(seen)


def planned(seed: int, first: int, count: int, only: Sequence[str]) -> Iterator[Round]:
    """Yield rounds; the kind of each depends on the seed and its number, unless `only` some kinds are wanted."""
    kinds = [kind for kind in KINDS if not only or any(kind.startswith(wanted) for wanted in only)]
    for number in range(first, first + count):
        yield Round(seed, number, Random(f"{seed}/{number}").choice(kinds))


@dataclass
class Play:
    """Plays rounds against a target, `workers` at a time, until `until` on the clock. With `restart` a server that has
    died or stands still is started again, and the rounds go on; else they end. `say` is told of each problem."""

    target: Target
    say: Callable[[str], None]
    workers: int = 2
    until: float = float("inf")
    restart: bool = False
    results: Results = field(default_factory=Results)

    def run(self, rounds: Sequence[Round]) -> Results:
        """Play the rounds in blocks; measure the server before the first and after each."""
        self._measure(0)
        for begin in range(0, len(rounds), BLOCK):
            with ThreadPoolExecutor(self.workers) as pool:
                for _ in pool.map(self._play, rounds[begin : begin + BLOCK]):
                    pass
            if not self._well():
                break
            self._measure(begin + len(rounds[begin : begin + BLOCK]))
            if time.monotonic() > self.until:
                break
        return self.results

    def _play(self, played: Round) -> None:
        if time.monotonic() > self.until or not self.target.server.alive:
            return
        began = time.time()
        seen = self._seen(played)
        self.results.note(played, seen, began)
        for problem in played.problems(seen):
            self.say(problem)
            if self.workers == 1 and not self._well():
                self.results.deaths[-1] += f" · {played.kind}"

    def _seen(self, played: Round) -> list[Seen]:
        """Return what a round shows, up to the first silence."""
        seen: list[Seen] = []
        for each in KINDS[played.kind](self.target, played.generator(), f"{played.seed}-{played.number}"):
            seen.append(each)
            if each.status == SILENT and each.problem:
                break
        return seen

    def _well(self) -> bool:
        """Return whether the server answers. One that does not is noted, ended, and started again with `restart`."""
        server = self.target.server
        answers = self.target.ask("/health").status == 200
        if server.alive and answers:
            return True
        code = server.process.poll()
        self.results.deaths.append("the server stands still" if code is None else f"the server died: {code}")
        self.say(f"{self.results.deaths[-1]}\n{server.log_tail()}")
        server.kill()
        if self.restart:
            server.start()
        return False

    def _measure(self, rounds: int) -> None:
        """Measure the server when only the models are left that someone uses."""
        server = self.target.server
        settle(server)
        self.results.measured.append((rounds, server.measure()))


def settle(server: Server, seconds: float = 15.0) -> None:
    """Wait until no more than one model is loaded, or give up after so many seconds."""
    eventually(lambda: len(server.children()) <= 1, seconds, pause=0.1)

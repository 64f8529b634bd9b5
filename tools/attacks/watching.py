"""The good client and the watch on `/health`, in a process of their own: only the server makes them wait."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event, Lock
from typing import Any, ClassVar

from attacks.client import Address, Response, ask
from attacks.server import GOOD

#: Seconds between two requests to `/health`, and between two good questions.
_HEALTH_PAUSE, _GOOD_PAUSE = 0.05, 0.02
_PATIENCE = 120.0
_QUESTION = {
    "model": GOOD, "messages": [{"role": "user", "content": "What is 17 + 25? /no_think"}], "temperature": 0,
    "seed": 1, "max_tokens": 32,
}  # fmt: skip
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class Watched:
    """What one client saw: the seconds of each response, when it came (since 1970), and what was wrong with others."""

    name: str
    seconds: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    failed: int = 0

    #: The most problems that are kept as text.
    MOST: ClassVar[int] = 20

    @property
    def count(self) -> int:
        """The number of requests."""
        return len(self.seconds) + self.failed

    def at(self, part: float) -> float:
        """Return the seconds below which this part of the responses came; 0 without any."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0

    def slowest(self, count: int) -> list[tuple[float, float]]:
        """Return the seconds and the moments of the slowest responses."""
        return sorted(zip(self.seconds, self.moments, strict=True), reverse=True)[:count]

    def note(self, response: Response, problem: str) -> None:
        """Keep one response."""
        if not problem:
            self.seconds.append(response.seconds)
            self.moments.append(time.time())
            return
        self.failed += 1
        if self.failed <= self.MOST:
            self.problems.append(f"{self.name} at {time.strftime('%H:%M:%S')}: {problem}")


class Watch:
    """A process that asks the good model the same question again and again, and `/health` twenty times a second.

    While `between` is held no good question is being answered.
    """

    def __init__(self, address: Address) -> None:
        self.between: Lock = _CONTEXT.Lock()
        self._stop: Event = _CONTEXT.Event()
        self._results, theirs = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_watch, args=(address, self.between, self._stop, theirs), daemon=True)
        self._process.start()
        if not self._results.recv():
            raise RuntimeError("the good model did not answer before the first attack")

    def end(self) -> tuple[Watched, Watched]:
        """Stop, and return what the good client and the watch on `/health` saw."""
        self._stop.set()
        good, health = self._results.recv()
        self._process.join()
        return good, health


def _watch(address: Address, between: Lock, stop: Event, results: Connection) -> None:
    good, health = Watched("good client"), Watched("/health")
    watching = threading.Thread(target=_watch_health, args=(address, stop, health))
    watching.start()
    first = _answer(ask(address, "/v1/chat/completions", _QUESTION, patience=_PATIENCE))
    results.send(bool(first))
    while not stop.is_set():
        with between:
            response = ask(address, "/v1/chat/completions", _QUESTION, patience=_PATIENCE)
        wrong = _answer(response) != first
        good.note(response, f"{response.status} after {response.seconds:.1f} s: {response.excerpt}" if wrong else "")
        stop.wait(_GOOD_PAUSE)
    watching.join()
    results.send((good, health))


def _answer(response: Response) -> str:
    """Return the text of a complete answer, else ""."""
    if response.status != 200 or response.broken:
        return ""
    choice: Any = json.loads(response.body)["choices"][0]
    return str(choice["message"]["content"]) if choice["finish_reason"] == "stop" else ""


def _watch_health(address: Address, stop: Event, seen: Watched) -> None:
    while not stop.is_set():
        response = ask(address, "/health", patience=_PATIENCE)
        wrong = response.status != 200
        seen.note(response, f"{response.status} after {response.seconds:.1f} s: {response.excerpt}" if wrong else "")
        stop.wait(_HEALTH_PAUSE)

"""SIGKILL at random moments: of a model's process, after which the next request succeeds; of the server, after which
nothing of it is left."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import psutil

from attacks.client import Response, expect
from attacks.gguf_file import STRING, scalar
from attacks.questions import Question
from attacks.server import eventually, model_processes, runs, signal_process
from attacks.target import Target, endless, long_prompt, short
from attacks.templates import PLAIN

#: Seconds in which no process of a model is left after the server was killed.
_GONE = 2.0
#: A template that takes about a second, so that a signal can come while it is rendered.
_SLOW = "{% for a in range(2000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}" + PLAIN
MOMENTS = ("loading", "rendering", "prefilling", "decoding", "idle")


@dataclass
class Kills:
    """Kills a process `count` times by a seed. `say` is told of each problem."""

    target: Target
    seed: int
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_end: float = 0.0

    def run(self, count: int) -> None:
        """Kill, alternately a child and the server."""
        for number in range(count):
            random = Random(f"{self.seed}/kill/{number}")
            moment, parent = random.choice(MOMENTS), number % 2 == 1
            what = f"{'server' if parent else 'child'} while {moment}"
            for problem in self._once(random, moment, parent, f"{self.seed}-{number}"):
                self.problems.append(f"kill {number} of seed {self.seed}, {what}: {problem}")
                self.say(self.problems[-1])
            self.done[what] += 1

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"{self.done.total()} kills, {len(self.problems)} problems"
        yield f"after a kill of the server its last child was gone in at most {self.slowest_end:.2f} s"
        yield from (f"* {what}: {count}" for what, count in sorted(self.done.items()))

    def _once(self, random: Random, moment: str, parent: bool, tag: str) -> Iterator[str]:
        with self.target.model(f"victim-{tag}", self._content(moment)) as name:
            if moment != "loading":
                self.target.question(short(name, f"{tag} first"))
            waiting = threading.Thread(target=self._ask, args=(moment, name, tag))
            if moment != "idle":
                waiting.start()
            if not eventually(lambda: self.target.server.child_of(name), 20):
                yield f"there is no process of {name}"
            time.sleep(random.random() * {"loading": 0.6, "rendering": 0.8}.get(moment, 0.3))
            yield from self._kill_parent(random) if parent else self._kill_child(name, tag)
            if waiting.ident is not None:
                waiting.join()

    def _content(self, moment: str) -> bytes:
        if moment != "rendering":
            return self.target.content
        return self.target.good.with_value("tokenizer.chat_template", scalar(STRING, _SLOW)).written()

    def _ask(self, moment: str, name: str, tag: str) -> Response:
        rendered: Question = (
            "/api/chat",
            {"model": name, "messages": [{"role": "user", "content": tag}], "stream": False},
        )
        asked = {"loading": short(name, tag), "rendering": rendered, "prefilling": long_prompt(name, tag)}
        return self.target.question(asked.get(moment) or endless(name, tag))

    def _kill_child(self, name: str, tag: str) -> Iterator[str]:
        child = self.target.server.child_of(name)
        if child is not None:
            signal_process(child, signal.SIGKILL)
        problem = expect(self.target.question(short(name, f"{tag} after")), (200,)).problem
        if problem:
            yield f"the next request: {problem}"

    def _kill_parent(self, random: Random) -> Iterator[str]:
        server = self.target.server
        children = server.children()
        server.process.kill()
        server.process.wait()
        began = time.monotonic()
        if not eventually(lambda: not any(map(runs, children)) and not model_processes(server.home), _GONE):
            yield f"{_GONE} s after the server there are {_shown(children)} {server.left_over()}"
        self.slowest_end = max(self.slowest_end, time.monotonic() - began)
        server.start()


def _shown(children: list[psutil.Process]) -> str:
    return ", ".join(f"{each.pid} {each.status()}" for each in children if runs(each))

"""The process of one model under measurement: reads requests as JSON lines, writes samples as JSON lines.

Not for people: `worker.py` starts it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from localqwen.bench import limits, memory
from localqwen.bench.samples import Sample, Test
from localqwen.bench.speed import SpeedBench
from localqwen.engines import Engine
from localqwen.errors import LocalqwenError

Answer = Mapping[str, Any]


def serve(requests: TextIO, answers: Callable[[Answer], None]) -> None:
    """Answers until the requests end. The first one opens the model."""
    bench: Bench | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if "open" in request:
                bench = Bench(**request["open"])
                answers({"opened": bench.facts()})
            elif "memory" in request:
                answers({"memory": memory.peak()})
            elif bench is not None:
                for sample in bench.measure(Test(**request["measure"]), request["repeat"], request["options"]):
                    answers({"sample": sample.to_json()})
                answers({"done": True})
        except LocalqwenError as error:
            told = {"class": type(error).__name__, "message": error.message, "hint": error.hint}
            answers({"error": told})
    if bench is not None:
        bench.engine.close()


class Bench:
    """The model, opened within its limits, and what measures it."""

    def __init__(
        self,
        name: str,
        label: str,
        engine: str | None,
        threads: int | None,
        context_length: int | None,
        max_runs: int,
        force: bool,
        limits: Mapping[str, Any],
    ) -> None:
        _hold(limits)
        from localqwen import engines

        began = time.perf_counter()
        self.engine: Engine = engines.open(
            name, engine=engine, threads=threads, context_length=context_length, max_runs=max_runs, force=force
        )
        self._load_ms = (time.perf_counter() - began) * 1000
        self._name, self._label = name, label
        self._speed = SpeedBench(self.engine, label)
        self._speed.warm_up()

    def facts(self) -> Answer:
        return {
            "engine": self.engine.name,
            "threads": getattr(self.engine, "threads", 0),
            "context_length": self.engine.context_length,
            "load_ms": self._load_ms,
        }

    def measure(self, test: Test, repeat: int, options: Mapping[str, Any]) -> Iterator[Sample]:
        yield self._speed.measure(test, repeat)


def _hold(wanted: Mapping[str, Any]) -> None:
    limits.Limits(**wanted).hold()


def main() -> None:
    out = sys.stdout

    def answer(message: Answer) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    sys.stdout = sys.stderr  # what a library prints must not be taken for an answer
    serve(sys.stdin, answer)


if __name__ == "__main__":
    main()

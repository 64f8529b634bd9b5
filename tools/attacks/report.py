"""What an attack showed, as a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from attacks.client import CLOSED, SILENT
from attacks.rounds import Kind, Results
from attacks.server import Measured
from attacks.watching import Watched

#: How many of the slowest responses are shown.
_SLOWEST = 5
_WORDS = {CLOSED: "closed", SILENT: "not whole"}


def lines(results: Results, good: Watched, health: Watched, seconds: float) -> Iterator[str]:
    """Yield the lines of a report, without the problems. `good` and `health` are what the watching clients saw."""
    rounds = sum(kind.rounds for kind in results.kinds.values())
    yield f"{rounds:,} rounds in {seconds:,.0f} s, {len(results.problems)} problems"
    yield f"good client: {len(good.seconds):,} of {good.count:,} answers complete and equal, {_times(good)}"
    yield f"/health: {len(health.seconds):,} of {health.count:,} answers, {_times(health)}"
    yield ""
    yield from _slowest(results, good)
    yield from _slowest(results, health)
    yield ""
    yield from _measurements(results.measured)
    yield from _table(results.kinds)


def _times(watched: Watched) -> str:
    values = (("median", 0.5), ("99 %", 0.99), ("worst", 1.0))
    return ", ".join(f"{name} {watched.at(part) * 1000:,.0f} ms" for name, part in values)


def _slowest(results: Results, watched: Watched) -> Iterator[str]:
    """Yield the slowest responses with the attacks that ran meanwhile."""
    for seconds, moment in watched.slowest(_SLOWEST):
        rounds = [f"{played.kind} ({played.number})" for played in results.during(moment - seconds, moment)]
        yield f"{watched.name}: {seconds * 1000:,.0f} ms during {', '.join(rounds) or 'no attack'}"


def _measurements(measured: Sequence[tuple[int, Measured]]) -> Iterator[str]:
    yield "| after rounds | server, MB | its children, MB | children | open files | threads |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for rounds, each in measured:
        memory = f"{each.parent_memory / 1e6:,.0f} | {each.children_memory / 1e6:,.0f}"
        yield f"| {rounds:,} | {memory} | {each.children} | {each.files} | {each.threads} |"
    yield ""


def _table(kinds: dict[str, Kind]) -> Iterator[str]:
    yield "| attack | rounds | responses | seconds: median, worst | problems |"
    yield "| --- | ---: | --- | ---: | ---: |"
    for name, kind in sorted(kinds.items()):
        statuses = ", ".join(
            f"{_WORDS.get(status, status)} x {count}" for status, count in sorted(kind.statuses.items())
        )
        times = f"{statistics.median(kind.seconds):.1f}, {max(kind.seconds):.1f}"
        yield f"| {name} | {kind.rounds} | {statuses} | {times} | {len(kind.problems)} |"
    yield ""

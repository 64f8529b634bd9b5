"""Compare two runs: ratios with their noise, and warnings about differences between the runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from localqwen.bench import contention
from localqwen.bench.history import Benchmark
from localqwen.bench.samples import METRICS, TIMELESS, Row, Test, rows
from localqwen.bench.stats import Ratio, ratio
from localqwen.errors import UsageError


@dataclass(frozen=True)
class Line:
    """One metric of one test. `better` is None if neither direction is better, or if no difference can be measured."""

    a: str
    b: str
    test: Test
    metric: str
    medians: tuple[float, float]
    ratio: Ratio
    better: bool | None


def compare(a: Benchmark, b: Benchmark) -> list[Line]:
    """Return a line for each metric of the tests that both runs have. Subjects are matched by name; if each run has
    only one, these two are matched. Raise UsageError if the runs have nothing in common."""
    left = {(row.subject, row.test): row for row in rows(a.samples)}
    pairs = _pairs(a, b)
    lines = [
        line
        for row in rows(b.samples)
        if (other := left.get((pairs.get(row.subject, ""), row.test))) is not None
        for line in _lines(other, row, in_a_crowd=bool(_crowded(a, other.subject) or _crowded(b, row.subject)))
    ]
    if not lines:
        raise UsageError(f"{a.id} and {b.id} have no test of one model in common", "localqwen bench list")
    return lines


def _pairs(a: Benchmark, b: Benchmark) -> dict[str, str]:
    """Return the subject of `a` for each subject of `b`."""
    ours, theirs = ([subject.label for subject in run.subjects] for run in (a, b))
    if len(ours) == len(theirs) == 1:
        return {theirs[0]: ours[0]}
    return {label: label for label in theirs if label in ours}


def _crowded(run: Benchmark, label: str) -> bool:
    mine = [sample for sample in run.samples if sample.subject == label]
    cpus = (run.settings.get("limits") or {}).get("cpus")
    return contention.crowded(mine, run.subject(label).threads, cpus or run.machine["cores"])


def _lines(a: Row, b: Row, *, in_a_crowd: bool) -> Iterator[Line]:
    for metric in a.metrics:
        left, right = ([s.values[metric] for s in row.samples if metric in s.values] for row in (a, b))
        if metric in METRICS and left and right and min(left + right) > 0:
            found = ratio(left, right)
            if in_a_crowd and metric not in TIMELESS:
                found = replace(found, verdict="cannot tell")
            more = METRICS[metric]
            better = None if more is None or found.verdict != "difference" else (found.low > 1) == more
            medians = (a.metrics[metric].median, b.metrics[metric].median)
            yield Line(a.subject, b.subject, b.test, metric, medians, found, better)


def warnings(a: Benchmark, b: Benchmark) -> list[str]:
    """Return what differs between the runs besides what is compared."""
    found = [f"{run.id} was stopped before its end" for run in (a, b) if not run.complete]
    for run in (a, b):
        taken = contention.processors(run.samples)
        if taken is not None and taken > contention.AT_REST:
            crowded = [subject.label for subject in run.subjects if _crowded(run, subject.label)]
            noisy = f": its speeds say nothing about {', '.join(crowded)}" if crowded else ""
            found.append(f"other programs took {taken:.1f} of {run.machine['cores']} processors from {run.id}{noisy}")
    if a.held != b.held:
        found.append(f"limits: {a.held or 'nothing'}; {b.held or 'nothing'}")
    if a.machine != b.machine:
        found.append(f"different machines: {a.machine['chip']}; {b.machine['chip']}")
    changed = [name for name in a.versions if name in b.versions and a.versions[name] != b.versions[name]]
    found += [f"different versions of {name}: {a.versions[name]}; {b.versions[name]}" for name in changed]
    pairs = _pairs(a, b)
    for label, other in pairs.items():
        new, old = b.subject(label), a.subject(other)
        if new.sha256 != old.sha256:
            found.append(f"different files: {old.file} ({old.sha256[:12]}); {new.file} ({new.sha256[:12]})")
    return found


def table(lines: list[Line]) -> list[tuple[str, ...]]:
    """Return the rows of the printed table."""
    head = ("MODEL", "TEST", "METRIC", "A", "B", "B / A", "95 %", "")
    return [head, *(_cells(line) for line in lines)]


def _cells(line: Line) -> tuple[str, ...]:
    from localqwen.bench.tables import number

    names = line.b if line.a == line.b else f"{line.a} → {line.b}"
    noise = "" if line.ratio.high == math.inf else f"{line.ratio.low:.3f} to {line.ratio.high:.3f}"
    verdict = {True: "better", False: "worse"}.get(line.better, line.ratio.verdict)  # type: ignore[arg-type]
    medians = map(number, line.medians)
    return (names, line.test.label, line.metric, *medians, f"{line.ratio.value:.3f}", noise, verdict)


def as_json(line: Line) -> dict[str, Any]:
    """Return the objects of `--json`."""
    return {**asdict(line), "ratio": {name: _finite(value) for name, value in asdict(line.ratio).items()}}


def _finite(value: Any) -> Any:
    """Return a number that JSON can hold: an infinite bound becomes null."""
    return None if value == float("inf") else value

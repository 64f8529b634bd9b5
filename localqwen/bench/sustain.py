"""Endurance: decoding without a pause, and what heat does to it.

Generates one answer after the other at a fixed depth for a given time, with a point of the series every few seconds.
Between repeats the machine may cool down to its first temperature, if it reports one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from localqwen.bench import stats
from localqwen.bench.prompts import RandomPrompts
from localqwen.bench.samples import Sample, Test
from localqwen.bench.sensors import Reading, Sensors
from localqwen.bench.speed import GREEDY
from localqwen.engines.engine import Engine

#: Seconds between two points of the series in long runs; short runs get about twenty points.
LONGEST_WINDOW = 10.0
#: The share of a run at its beginning and at its end that is compared.
_EDGE = 0.1
COOL_WITHIN = 3.0  # degrees above the temperature at which the first repeat began
COOL_AT_MOST = 600.0  # the longest cool-down in seconds
Point = Mapping[str, float | None]


class Endurance:
    """Decodes on an engine without a pause; call it in the engine's thread. `clock` and `sleep` are in seconds."""

    def __init__(
        self,
        engine: Engine,
        subject: str,
        sensors: Sensors,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine, self._subject, self._sensors = engine, subject, sensors
        self._clock, self._sleep = clock, sleep
        self._random = RandomPrompts(engine)
        self._cool: float | None = None  # temperature at which the first repeat began

    @property
    def sources(self) -> Mapping[str, str]:
        """Return the source of each value that is measured besides speed."""
        return self._sensors.sources

    def measure(self, test: Test, repeat: int, seconds: float) -> Sample:
        """Return the sample of one endurance run."""
        waited = self._cool_down()
        points = list(self._points(test, repeat, seconds))
        return Sample(self._subject, test, {**summary(points), "cool_down_seconds": waited}, series=tuple(points))

    def _cool_down(self) -> float:
        """Wait until the machine is as cool as at the beginning, and return the seconds. Without a sensor it does not
        wait."""
        now = self._sensors.read().celsius
        if self._cool is None or now is None:
            self._cool = now
            return 0.0
        began = self._clock()
        while now is not None and now > self._cool + COOL_WITHIN and self._clock() - began < COOL_AT_MOST:
            self._sleep(1.0)
            now = self._sensors.read().celsius
        return self._clock() - began

    def _points(self, test: Test, repeat: int, seconds: float) -> Iterator[Point]:
        window = min(LONGEST_WINDOW, seconds / 20)
        tokens, before, energy = 0, self._sensors.read(), 0.0
        began = last = self._clock()
        for count in self._steps(test, repeat):
            tokens += count
            now = self._clock()
            if now - last < window:
                continue
            reading = self._sensors.read()
            joules = _joules(before, reading, now - last)
            energy += joules or 0.0
            yield {
                "seconds": now - began,
                "tokens": float(tokens),
                "tokens_per_second": tokens / (now - last),
                "celsius": reading.celsius,
                "megahertz": reading.megahertz,
                "joules": joules,
            }
            if now - began >= seconds:
                return
            tokens, before, last = 0, reading, self._clock()

    def _steps(self, test: Test, repeat: int) -> Iterator[int]:
        """Yield the tokens of each step without end: a run that stops is followed by another one at the same depth."""
        for number in iter(int, None):
            depth = self._random.tokens(max(test.depth, 1), test.depth)
            run = self._engine.start(
                (*depth, *self._random.tokens(1, repeat, number)), GREEDY, max_tokens=test.generate
            )
            try:
                while not run.finished:
                    yield len(self._engine.step())
            finally:
                self._engine.cancel(run)


def _joules(before: Reading, after: Reading, seconds: float) -> float | None:
    """Return the energy between two readings: the difference of a counter, or the mean power multiplied by the time."""
    if before.joules is not None and after.joules is not None:
        return after.joules - before.joules
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * seconds
    return None


def summary(points: list[Point]) -> dict[str, float]:
    """Return the metrics of a series. `held_share` is the speed of the last tenth divided by that of the first;
    `slope_per_minute` is the change of speed per minute as a share of the mean (negative: it slows down); energy only
    if every point has it."""
    speeds = [(point["seconds"] or 0.0, point["tokens_per_second"] or 0.0) for point in points]
    edge = max(1, round(len(points) * _EDGE))
    first, last = ([speed for _, speed in part] for part in (speeds[:edge], speeds[-edge:]))
    seconds, tokens = points[-1]["seconds"] or 0.0, sum(point["tokens"] or 0.0 for point in points)
    found = {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "first_per_second": sum(first) / len(first),
        "last_per_second": sum(last) / len(last),
    }
    found["held_share"] = found["last_per_second"] / found["first_per_second"]
    slope = stats.slope(speeds)
    if slope is not None:
        found["slope_per_minute"] = 60 * slope / found["tokens_per_second"]
    return found | _from_sensors(points, tokens)


def _from_sensors(points: list[Point], tokens: float) -> dict[str, float]:
    found: dict[str, Any] = {}
    warm = [point["celsius"] for point in points if point["celsius"] is not None]
    clocks = [point["megahertz"] for point in points if point["megahertz"] is not None]
    energy = [point["joules"] for point in points if point["joules"] is not None]
    found |= {"celsius_first": warm[0], "celsius_max": max(warm)} if warm else {}
    found |= {"megahertz_first": clocks[0], "megahertz_min": min(clocks)} if clocks else {}
    return found | ({"joules_per_token": sum(energy) / tokens} if len(energy) == len(points) else {})

"""How many threads to compute with while other programs want the processor too.

llama.cpp's threads wait for each other by spinning, at every layer. Where one of them does not get a core, all of them
wait for its time slice, and a step takes up to ten times as long: one thread less is then much faster. What the other
programs take is read from the system's accounting, because trying more threads out would cost what it is meant to save.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds between two looks. The system counts in hundredths: shorter intervals say little, longer ones react late.
INTERVAL = 0.5
#: An interval longer than this says nothing of the present: nobody asked anything meanwhile.
STALE = 5.0
#: Of a core: others that take less do not cost a thread, and to get one back they must take clearly less.
SPARE, SPARE_TO_GROW = 0.4, 0.25


@dataclass(frozen=True)
class Sample:
    """Seconds: the time, what all CPUs that this process may use have worked, and what of it was this process."""

    time: float
    busy: float
    own: float


class Threads:
    """Call `now()` before each step. `limit` is what an idle machine is best used with, `cpus` the logical CPUs."""

    def __init__(
        self, limit: int, cpus: int, sample: Callable[[], Sample], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._cpus, self._sample, self._clock = limit, cpus, sample, clock
        self._last = sample()
        self.count = limit

    def now(self) -> int:
        if self._clock() - self._last.time >= INTERVAL:
            before, self._last = self._last, self._sample()
            elapsed = self._last.time - before.time
            if elapsed <= STALE:
                others = (self._last.busy - before.busy) - (self._last.own - before.own)
                self.count = suited(self.count, self._limit, self._cpus, max(0.0, others) / elapsed)
        return self.count


def suited(present: int, limit: int, cpus: int, others: float) -> int:
    """Threads that get a core each where other programs keep `others` cores busy."""
    fewer, more = int(cpus - others + SPARE), int(cpus - others + SPARE_TO_GROW)
    return max(1, min(limit, fewer if fewer < present else max(present, more)))


def watched(limit: int) -> Threads | None:
    """Of this process; None where one thread is all there is, or the system does not tell."""
    sample = accounting() if limit > 1 else None
    return Threads(limit, len(_cpus()), sample) if sample else None


def accounting() -> Callable[[], Sample] | None:
    """Reads what the CPUs of this process have worked; None where the system does not tell (Android, to apps)."""
    import psutil

    cpus = _cpus()
    try:
        known = len(psutil.cpu_times(percpu=True)) > cpus[-1]
    except (OSError, RuntimeError):
        return None
    if not known:
        return None

    def sample() -> Sample:
        times = psutil.cpu_times(percpu=True)
        return Sample(time.monotonic(), sum(_busy(times[cpu]) for cpu in cpus), time.process_time())

    return sample


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _busy(times: object) -> float:
    """What a hypervisor took away (steal) is missing for us as much as what another program took. Guests are counted
    in user time already."""
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, name, 0.0) for name in names)

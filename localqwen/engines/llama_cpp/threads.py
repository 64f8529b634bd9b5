"""How many threads compute while other programs want the processor too: a rule on loads that it is given.

llama.cpp's threads wait for each other by spinning, at every layer. Where one of them does not get a core, all of them
wait for its time slice, and a step takes up to ten times as long: one thread less is then much faster. What the other
programs take is read from the system's accounting, because trying more threads out would cost what it is meant to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from localqwen.machine.cpu_time import CpuTime, accounting
from localqwen.machine.posix import usable_cpus

#: Seconds between two readings. The system counts in hundredths: shorter intervals say little, longer ones react late.
INTERVAL = 0.5
#: Seconds. A longer interval says nothing of the present: the engine computed nothing meanwhile.
STALE = 5.0
#: Cores. Others that take less than SPARE cost no thread; to get one back, they must take less than SPARE_TO_GROW.
SPARE, SPARE_TO_GROW = 0.4, 0.25


class Threads:
    """The number of threads for the next step, adapted to the load. Reads the accounting every INTERVAL seconds."""

    def __init__(
        self, limit: int, cpus: int, sample: Callable[[], CpuTime], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit` is the best number of threads on an idle machine, `cpus` how many logical CPUs there are."""
        self._limit, self._cpus, self._sample, self._clock = limit, cpus, sample, clock
        self._last = sample()
        self.count = limit

    def now(self) -> int:
        """Return the number of threads for the next step: call it before each."""
        if self._clock() - self._last.time >= INTERVAL:
            before, self._last = self._last, self._sample()
            elapsed, others = self._last.since(before)
            if elapsed <= STALE:
                self.count = suited(self.count, self._limit, self._cpus, others / elapsed)
        return self.count


def suited(present: int, limit: int, cpus: int, others: float) -> int:
    """Return how many threads get a core each where other programs keep `others` cores busy."""
    fewer, more = int(cpus - others + SPARE), int(cpus - others + SPARE_TO_GROW)
    return max(1, min(limit, fewer if fewer < present else max(present, more)))


def watched(limit: int) -> Threads | None:
    """Return the threads of this process; None where one is all there is, or the system does not tell its load."""
    sample = accounting() if limit > 1 else None
    return Threads(limit, len(usable_cpus()), sample) if sample else None

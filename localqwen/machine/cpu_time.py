"""The time of the CPUs that this process may use: its own, and what other programs took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from localqwen.machine.posix import usable_cpus


@dataclass(frozen=True)
class CpuTime:
    """Seconds: a clock, the work of all CPUs that this process may use, and how much of it was this process."""

    time: float
    busy: float
    own: float

    def since(self, before: CpuTime) -> tuple[float, float]:
        """Return the seconds that passed, and the CPU seconds that other programs took meanwhile."""
        others = (self.busy - before.busy) - (self.own - before.own)
        return self.time - before.time, max(0.0, others)


def accounting() -> Callable[[], CpuTime] | None:
    """Return a reader of the system's accounting; None if the system does not report it (Android, to apps)."""
    import psutil

    cpus = usable_cpus()
    try:
        known = len(psutil.cpu_times(percpu=True)) > cpus[-1]
    except (OSError, RuntimeError):
        return None
    if not known:
        return None

    def read() -> CpuTime:
        times = psutil.cpu_times(percpu=True)
        return CpuTime(time.monotonic(), sum(_busy(times[cpu]) for cpu in cpus), time.process_time())

    return read


def _busy(times: object) -> float:
    """Return a CPU's seconds of work. What a hypervisor took away (steal) counts: we miss it like what another program
    took. Guests are part of user time already."""
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, name, 0.0) for name in names)

"""Holding a process to the limits of a smaller device: processors and memory, as far as the system can.

A laptop that stands in for a phone has the phone's number of cores and its memory; it does not have its clock, its
memory bandwidth or its heat. The report says so.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from localqwen.errors import Unsupported


@dataclass(frozen=True)
class Limits:
    """`cpus` is how many processors the process may use, `memory` how many bytes of address space it may take beyond
    what it has when the limit is set; None for as much as there is."""

    cpus: int | None = None
    memory: int | None = None

    def __bool__(self) -> bool:
        return self.cpus is not None or self.memory is not None

    def check(self) -> None:
        """Raises Unsupported for a limit that cannot be held here."""
        if not self:
            return
        if sys.platform not in ("linux", "android"):
            raise Unsupported(
                f"a process cannot be held to a device's limits on {sys.platform}",
                "run it on Linux, or without --hold: the limits are then only compared",
            )
        here = len(os.sched_getaffinity(0))
        if self.cpus is not None and self.cpus > here:
            raise Unsupported(
                f"{self.cpus} processors cannot be held here: this process may use {here}",
                "leave out --hold, or run it on a machine with as many",
            )

    def hold(self) -> None:
        """For this process, for good. Call before the engine is loaded: its threads inherit it."""
        self.check()
        if self.cpus is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.cpus])
        if self.memory is not None:
            _limit_memory(self.memory)

    @property
    def text(self) -> str:
        cpus = f"{self.cpus} processor{'s' if self.cpus != 1 else ''}" if self.cpus is not None else ""
        memory = f"{self.memory / 1e9:g} GB of memory" if self.memory is not None else ""
        return " and ".join(part for part in (cpus, memory) if part)


NO_LIMITS = Limits()


def _limit_memory(count: int) -> None:
    """Address space: Linux holds a process to nothing else without a cgroup of its own. Mapped weights count, as they
    do on a device; libraries that reserve space without using it do too, so what is there already is added."""
    import resource

    wanted = count + _address_space()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise Unsupported(
            f"{count / 1e9:.1f} GB cannot be held: this process is limited to {hard / 1e9:.1f} GB already",
            "raise that limit (ulimit -v), or leave out --hold",
        )
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

"""Limit a process to the processors and memory of a smaller device, as far as the system can.

A laptop that stands in for a phone has the phone's number of cores and its memory; it does not have its clock, its
memory bandwidth or its heat. The report says so, and names the mechanism of each limit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

from localqwen.errors import Unsupported
from localqwen.machine import cgroup, posix
from localqwen.machine.cgroup import Group, Place

_FREE = "leave out --hold: the limits are then only compared"


@dataclass(frozen=True)
class Limits:
    """The limits of a process: `cpus` processors and `memory` bytes; None is no limit. `place` is where a cgroup can be
    created for it; without one, memory is the address space that it may add to what it has when the limit is set."""

    cpus: int | None = None
    memory: int | None = None
    place: Place | None = None

    def __bool__(self) -> bool:
        return self.cpus is not None or self.memory is not None

    def here(self, root: Path = Path("/")) -> Limits:
        """Return the limits with the best mechanism of this machine. Raise Unsupported if one is impossible here."""
        if not self:
            return self
        if sys.platform not in ("linux", "android"):
            raise Unsupported(f"a process cannot be limited like a device on {sys.platform}", _FREE)
        allowed = len(posix.usable_cpus())
        if self.cpus is not None and self.cpus > allowed:
            raise Unsupported(
                f"a process cannot be limited to {self.cpus} processors here: this one may use {allowed}",
                f"use a machine with so many, or {_FREE}",
            )
        found = replace(self, place=cgroup.find(root))
        if found.memory is not None and found.place is None:
            _check_address_space(found.memory)
        return found

    @property
    def group_settings(self) -> Mapping[str, str]:
        """Return the settings of the cgroup for the process; empty if it gets none."""
        return cgroup.settings(self.place, self.cpus, self.memory) if self.place else {}

    def group(self) -> Group | None:
        """Return a new cgroup for one process, None without a place. Raise Unsupported if it cannot be created."""
        if not self.group_settings or self.place is None:
            return None
        try:
            return Group(self.place, self.group_settings)
        except OSError as exc:
            raise Unsupported(f"no cgroup can be created in {self.place.folder}: {exc.strerror}", _FREE) from exc

    @property
    def of_process(self) -> dict[str, int | None]:
        """Return what the process must do itself: the arguments of `limit_process`."""
        return {"cpus": self.cpus, "address_space": None if "memory.max" in self.group_settings else self.memory}

    @property
    def text(self) -> str:
        """Return the limits in words: `4 processors (affinity) and 5 GB of memory (memory.max)`."""
        ways = self.group_settings
        cpus = memory = ""
        if self.cpus is not None:
            how = "affinity, cpu.max" if "cpu.max" in ways else "affinity"
            cpus = f"{self.cpus} processor{'s' if self.cpus != 1 else ''} ({how})"
        if self.memory is not None:
            how = "memory.max" if "memory.max" in ways else "RLIMIT_AS"
            memory = f"{self.memory / 1e9:g} GB of memory ({how})"
        return " and ".join(part for part in (cpus, memory) if part)

    def to_json(self) -> dict[str, Any]:
        """Return the limits for the head of a run. Nothing in it names a person."""
        return {"cpus": self.cpus, "memory": self.memory, "cgroup": sorted(self.group_settings)}


NO_LIMITS = Limits()


def limit_process(cpus: int | None, address_space: int | None) -> None:
    """Limit this process for the rest of its life. Call it before the engine is loaded: its threads inherit it."""
    if cpus is not None:
        posix.pin_to_cpus(cpus)
    if address_space is not None:
        _limit_address_space(address_space)


def _check_address_space(count: int) -> None:
    hard = posix.address_space_limit()
    if hard is not None and count + _address_space() > hard:
        raise Unsupported(
            f"a process cannot be limited to {count / 1e9:.1f} GB here: this one already is to {hard / 1e9:.1f} GB",
            f"raise that limit (ulimit -v), or {_FREE}",
        )


def _limit_address_space(count: int) -> None:
    """Limit the address space to `count` bytes beyond the present size: without a cgroup, Linux enforces no other
    limit. Mapped weights count, as on a device. Space that libraries reserved and do not use is in the
    present size."""
    posix.limit_address_space(count + _address_space())


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * PAGESIZE

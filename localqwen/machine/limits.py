"""Holding a process to the limits of a smaller device: processors and memory, as far as the system can.

A laptop that stands in for a phone has the phone's number of cores and its memory; it does not have its clock, its
memory bandwidth or its heat. The report says so, and which way holds what.
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
    """`cpus` is how many processors the process may use, `memory` how many bytes it may take; None for as much as there
    is. `place` is where a cgroup can be made for it; without one, memory is the address space that it may take beyond
    what it has when the limit is set."""

    cpus: int | None = None
    memory: int | None = None
    place: Place | None = None

    def __bool__(self) -> bool:
        return self.cpus is not None or self.memory is not None

    def here(self, root: Path = Path("/")) -> Limits:
        """With the best way to hold them on this machine. Raises Unsupported for a limit that cannot be held here."""
        if not self:
            return self
        if sys.platform not in ("linux", "android"):
            raise Unsupported(f"a process cannot be held to a device's limits on {sys.platform}", _FREE)
        allowed = len(posix.usable_cpus())
        if self.cpus is not None and self.cpus > allowed:
            raise Unsupported(
                f"{self.cpus} processors cannot be held here: this process may use {allowed}",
                f"run it on a machine with as many, or {_FREE}",
            )
        found = replace(self, place=cgroup.find(root))
        if found.memory is not None and found.place is None:
            _check_address_space(found.memory)
        return found

    @property
    def group_settings(self) -> Mapping[str, str]:
        """Of the cgroup that the process gets; empty where it gets none."""
        return cgroup.settings(self.place, self.cpus, self.memory) if self.place else {}

    def group(self) -> Group | None:
        """A new one for one process. Raises Unsupported where the kernel has changed its mind."""
        if not self.group_settings or self.place is None:
            return None
        try:
            return Group(self.place, self.group_settings)
        except OSError as exc:
            raise Unsupported(f"no cgroup can be made in {self.place.folder}: {exc.strerror}", _FREE) from exc

    @property
    def of_process(self) -> dict[str, int | None]:
        """What the process must do itself: the arguments of `hold`."""
        return {"cpus": self.cpus, "address_space": None if "memory.max" in self.group_settings else self.memory}

    @property
    def text(self) -> str:
        """`4 processors (affinity) and 5 GB of memory (memory.max)`."""
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
        """For the head of a run; nothing in it names a person."""
        return {"cpus": self.cpus, "memory": self.memory, "cgroup": sorted(self.group_settings)}


NO_LIMITS = Limits()


def hold(cpus: int | None, address_space: int | None) -> None:
    """For this process, for good. Call before the engine is loaded: its threads inherit it."""
    if cpus is not None:
        posix.pin_to_cpus(cpus)
    if address_space is not None:
        _limit_address_space(address_space)


def _check_address_space(count: int) -> None:
    hard = posix.address_space_limit()
    if hard is not None and count + _address_space() > hard:
        raise Unsupported(
            f"{count / 1e9:.1f} GB cannot be held: this process is limited to {hard / 1e9:.1f} GB already",
            f"raise that limit (ulimit -v), or {_FREE}",
        )


def _limit_address_space(count: int) -> None:
    """Linux holds a process to nothing else without a cgroup of its own. Mapped weights count, as they do on a device;
    libraries that reserve space without using it do too, so what is there already is added."""
    posix.limit_address_space(count + _address_space())


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * PAGESIZE

"""Limit a process with cgroup v2: the kernel's own account of its memory and processor time.

It needs a folder of the hierarchy in which this user may create groups and move processes to: that of a delegated scope
(`systemd-run --user --scope`), or, for root, any folder. If there is none, `limits` has another way.

Source: the kernel's documentation, "Control Group v2". A group with processes passes no controllers on to groups inside
it, so the measured process gets a group beside ours, under the nearest folder above that passes them on. Existing
groups are never changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localqwen import machine
from localqwen.machine import posix

#: The microseconds of one period of processor time.
_PERIOD = 100_000
#: The most seconds to wait until the killed processes of a group are gone.
_GONE_WITHIN = 2.0


@dataclass(frozen=True)
class Place:
    """A folder in which groups can be created, and the controllers that they get."""

    folder: Path
    controllers: frozenset[str]


def find(root: Path = Path("/")) -> Place | None:
    """Return the nearest place that works when tried, or None. `root` is the root folder of the system."""
    own = machine.own_cgroup(root)
    if own is None:
        return None
    folder, top = own
    for above in (folder, *folder.parents):
        controllers = frozenset(_words(above / "cgroup.subtree_control")) & {"memory", "cpu"}
        if "memory" in controllers and _works(Place(above, controllers)):
            return Place(above, controllers)
        if above == top:
            return None
    return None


def settings(place: Place, cpus: int | None, memory: int | None) -> dict[str, str]:
    """Return the files of a group and what to write into them. Swap is off, as on a phone."""
    found: dict[str, str] = {}
    if memory is not None and "memory" in place.controllers:
        found |= {"memory.max": str(memory), "memory.swap.max": "0"}
    if cpus is not None and "cpu" in place.controllers:
        found["cpu.max"] = f"{cpus * _PERIOD} {_PERIOD}"
    return found


class Group:
    """A group for one process. Use it with `with`, or close it: then its processes are killed and it is removed.

    Raise OSError if the kernel refuses.
    """

    def __init__(self, place: Place, values: Mapping[str, str]) -> None:
        _sweep(place.folder)
        self.path = place.folder / f"localqwen-{os.getpid()}-{secrets.token_hex(3)}"
        self.path.mkdir()
        try:
            for name, value in values.items():
                if name != "memory.swap.max" or (self.path / name).exists():  # a kernel without swap has no such file
                    (self.path / name).write_text(value)
        except BaseException:
            self.close()
            raise

    def add(self, pid: int) -> None:
        """Move a process here. From then on, its memory and time are counted here, and those of its children."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def out_of_memory(self) -> bool:
        """Return whether the kernel has killed a process of this group because memory ran out."""
        words = _words(self.path / "memory.events")  # a name and a number per line
        return "oom_kill" in words and words[words.index("oom_kill") + 1] != "0"

    def close(self) -> None:
        """Kill the processes of this group and remove it. If the kernel takes too long, an empty group stays; it costs
        nothing."""
        kill = self.path / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
        until = time.monotonic() + _GONE_WITHIN
        while time.monotonic() < until:
            try:
                os.rmdir(self.path)
                return
            except OSError:  # busy: a killed process takes a moment to end
                time.sleep(0.01)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sweep(folder: Path) -> None:
    """Remove groups whose owner was killed before it could do so. A group with a process in it stays."""
    for left in folder.glob("localqwen-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                os.rmdir(left)


def _works(place: Place) -> bool:
    """Return whether a process can be moved there. Only a trial shows it: it depends on the folders in between."""
    waiting = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with Group(place, settings(place, 1, 1 << 30)) as group:
            group.add(waiting.pid)
    except OSError:
        return False
    finally:
        waiting.kill()
        waiting.communicate()
    return True


def drop_cached(files: list[Path]) -> None:
    """Drop the cached pages of files that nobody uses, so that the next reader's group counts them. Pages that another
    process has read are counted in its group, and a limit of memory would not see them."""
    for path in files:
        with contextlib.suppress(OSError), path.open("rb") as file:
            posix.drop_cached_pages(file.fileno())


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []

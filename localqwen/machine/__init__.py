"""What this machine is: system, chip, cores, memory. Imports no engine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from localqwen.machine import posix

#: Bounded spinning: as fast as the default on an idle machine, and several times faster when another program uses a
#: core, because llama.cpp's OpenMP threads otherwise spin for ever.
OPENMP_DEFAULTS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


@dataclass(frozen=True)
class Machine:
    """This machine. `cores` are the physical cores that this process may use; memory is in bytes."""

    system: str
    architecture: str
    chip: str
    cores: int
    memory: int
    available_memory: int


def this_machine() -> Machine:
    """Return this machine. It is read again at each call, because the available memory changes."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_memory_limit()
    total = min(memory.total, limit) if limit else memory.total
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        chip=_chip(),
        cores=usable_cores(),
        memory=total,
        available_memory=min(memory.available, total),
    )


@cache
def usable_cores() -> int:
    """Return the number of physical cores, at most what the affinity mask and the container's CPU quota allow.

    Threads of llama.cpp spin while they wait, so one thread too many costs far more than one too few.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, len(posix.usable_cpus()), _cgroup_cpu_quota() or physical))


def _cgroup_cpu_quota() -> int | None:
    """Return the CPUs that cgroup v2 grants (`cpu.max`: quota and period in microseconds), None without a limit."""
    found = [text.split() for text in _cgroup_values("cpu.max")]
    quotas = [int(quota) // int(period) for quota, period in found if quota.isdigit() and period.isdigit()]
    return max(1, min(quotas)) if quotas else None


def _cgroup_memory_limit() -> int | None:
    return min((int(text) for text in _cgroup_values("memory.max") if text.strip().isdigit()), default=None)


def _cgroup_values(name: str) -> list[str]:
    """Return a file's text in this process's group and all above: the tightest limit applies."""
    own = own_cgroup()
    if own is None:
        return []
    folder, top = own
    above = [each for each in (folder, *folder.parents) if each.is_relative_to(top)]
    return [text for each in above if (text := _read(each / name))]


def own_cgroup(root: Path = Path("/")) -> tuple[Path, Path] | None:
    """Return the folder of this process's group in cgroup v2 and the top of that hierarchy; None without cgroup v2.

    /proc/self/mountinfo (proc(5)): `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT … - cgroup2 …`; a container sees a part of
    the hierarchy, whose root there is ROOT. /proc/self/cgroup: `0::PATH`.
    """
    lines = _read(root / "proc/self/cgroup").splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        if path and not path.startswith("/..") and kind.startswith("cgroup2 "):
            part, place = mount.split()[3:5]
            top = root / place.lstrip("/")
            return top / path.removeprefix("" if part == "/" else part).lstrip("/"), top
    return None


def set_openmp_defaults() -> None:
    """Set OPENMP_DEFAULTS, except for what the user has set. Call it before a library of llama.cpp is loaded: OpenMP
    reads the environment once."""
    for name, value in OPENMP_DEFAULTS.items():
        os.environ.setdefault(name, value)


@cache
def _chip() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        ran = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return ran.stdout.strip() or platform.processor()
    return _board() or platform.processor() or platform.machine()


def _board() -> str:
    """Return the board's name, for a processor without one: from the device tree, or from Android's properties."""
    model = _read(Path("/proc/device-tree/model")).strip("\0 \n")
    getprop = shutil.which("getprop")
    if model or getprop is None:
        return model
    properties = [
        subprocess.run([getprop, name], capture_output=True, text=True, check=False).stdout.strip()
        for name in ("ro.product.model", "ro.soc.model")
    ]
    return ", ".join(filter(None, properties))


def cpu_flags() -> str:
    """Return the instruction sets of the CPU in one line; "" if the system does not report them."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            return line.partition(":")[2].strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

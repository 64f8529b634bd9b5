"""The most memory that this process has had at once."""

from __future__ import annotations

from pathlib import Path

from localqwen.machine import posix

_STATUS = Path("/proc/self/status")


def peak() -> int | None:
    """Return the peak of resident memory in bytes, with mapped weights; None if the system does not report it.

    Linux: VmHWM, which starts at zero in each program; `ru_maxrss` there is inherited from the parent over exec.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return posix.peak_memory()

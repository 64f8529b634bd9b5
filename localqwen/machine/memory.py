"""The most memory that this process has had at once."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int | None:
    """Bytes of resident memory, mapped weights included, at their most; None where the system does not tell.

    Linux: VmHWM, which begins anew with each program; `ru_maxrss` there is inherited from the parent over exec.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

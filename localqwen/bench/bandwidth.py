"""How fast this machine reads memory: the bound of decoding, which reads every weight once per token."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from localqwen.models import recommend

#: Larger than the caches of the processors that models run on.
_BYTES = 256 << 20
_ROUNDS = 5


def measured(threads: int) -> float:
    """Bytes per second: the best of a copy by one thread and of plain reading by as many threads as the engine has.

    The engine's share of it is honest only beside its threads: one thread seldom reaches what a memory can give.
    Takes about a second.
    """
    return max(recommend.measured_bandwidth(), _read(max(threads, 1)))


def _read(threads: int) -> float:
    import numpy

    parts = numpy.array_split(numpy.ones(_BYTES // 4, dtype=numpy.int32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(lambda part: part.max(), parts))  # numpy lets go of the interpreter while it reads
            best = max(best, _BYTES / (time.perf_counter() - began))
    return best

"""How fast this machine reads memory. This limits decoding, which reads every weight once per token."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from localqwen.models import recommend

#: Bytes: larger than the caches of the processors that models run on.
_BYTES = 256 << 20
_ROUNDS = 5


def measured(threads: int) -> float:
    """Return the memory bandwidth in bytes per second: the better one of a copy with one thread and of reading with as
    many threads as the engine has. Takes about one second.

    The engine's share of the bandwidth is fair only with the same number of threads: one thread seldom reaches the
    limit of the memory.
    """
    return max(recommend.measured_bandwidth(), _read(max(threads, 1)))


def _read(threads: int) -> float:
    import numpy

    parts = numpy.array_split(numpy.ones(_BYTES // 4, dtype=numpy.int32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(lambda part: part.max(), parts))  # numpy releases the interpreter's lock while it reads
            best = max(best, _BYTES / (time.perf_counter() - began))
    return best

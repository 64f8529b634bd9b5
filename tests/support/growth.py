"""How the work grows with the size of what is worked on: the test for linear time, which no busy machine fails."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def ratio(work: Callable[[T], object], small: T, large: T, *, rounds: int = 5) -> float:
    """Return how many times as much processor time of this thread `large` takes as `small`: the best of some rounds
    each, in turns. The garbage collector rests meanwhile: it also looks at what others left."""
    best = [float("inf"), float("inf")]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for index, size in enumerate((small, large)):
                began = time.thread_time()
                work(size)
                best[index] = min(best[index], time.thread_time() - began)
    finally:
        gc.enable()
    return best[1] / best[0]

"""How a duration grows with the size of what is worked on: the test for linear time, which no slow machine fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def ratio(work: Callable[[T], object], small: T, large: T, *, rounds: int = 5) -> float:
    """Return how many times as long `large` takes as `small`: the best of some rounds each, in turns."""
    best = {id(small): float("inf"), id(large): float("inf")}
    for _ in range(rounds):
        for size in (small, large):
            began = time.perf_counter()
            work(size)
            best[id(size)] = min(best[id(size)], time.perf_counter() - began)
    return best[id(large)] / best[id(small)]

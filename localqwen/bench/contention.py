"""What other programs took of the processors while something was measured.

A speed that was measured beside another program is that of both. Repeats do not show it: the other program was there
for all of them. So it is counted, told, and `bench compare` says nothing of speeds that were measured in a crowd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from localqwen.bench.samples import Sample
from localqwen.machine.cpu_time import CpuTime, accounting

#: Of a processor: a desktop at rest takes less.
AT_REST = 0.2


class Others:
    """Counts from one call of `since` to the next."""

    def __init__(self, account: Callable[[], CpuTime] | None = None) -> None:
        self._account = account or accounting()
        self._last = self._account() if self._account else None

    def since(self) -> Mapping[str, float]:
        """Seconds that passed, and seconds of processors that others took; empty where the system does not tell."""
        if self._account is None or self._last is None:
            return {}
        before, self._last = self._last, self._account()
        elapsed, others = self._last.since(before)
        return {"elapsed_seconds": elapsed, "others_seconds": others}


def processors(samples: Iterable[Sample]) -> float | None:
    """How many of them others took on average, over all samples: single ones are shorter than a tick of the system."""
    known = [sample.values for sample in samples if "others_seconds" in sample.values]
    elapsed = sum(values["elapsed_seconds"] for values in known)
    return sum(values["others_seconds"] for values in known) / elapsed if elapsed else None


def crowded(samples: Iterable[Sample], threads: int, cores: int) -> bool:
    """Whether others left fewer processors than there were threads."""
    taken = processors(samples)
    return taken is not None and taken > AT_REST and taken + max(threads, 1) > cores

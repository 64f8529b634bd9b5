"""How much of the processors other programs took during a measurement.

A speed that was measured beside another program is the speed of both. Repeats do not show this: the other program runs
during all of them. So their time is counted and reported, and `bench compare` says "cannot tell" about such speeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from localqwen.bench.samples import Sample
from localqwen.machine.cpu_time import CpuTime, accounting

#: Processors that others may take: an idle desktop takes less.
AT_REST = 0.2


class Others:
    """Counts the processor time of other programs, from one call of `since` to the next."""

    def __init__(self, account: Callable[[], CpuTime] | None = None) -> None:
        self._account = account or accounting()
        self._last = self._account() if self._account else None

    def since(self) -> Mapping[str, float]:
        """Return the seconds that passed and the processor seconds that others took; nothing if the system does not
        report them."""
        if self._account is None or self._last is None:
            return {}
        before, self._last = self._last, self._account()
        elapsed, others = self._last.since(before)
        return {"elapsed_seconds": elapsed, "others_seconds": others}


def processors(samples: Iterable[Sample]) -> float | None:
    """Return the average number of processors that others took, over all samples: a single sample may be shorter than
    the system's clock tick."""
    known = [sample.values for sample in samples if "others_seconds" in sample.values]
    elapsed = sum(values["elapsed_seconds"] for values in known)
    return sum(values["others_seconds"] for values in known) / elapsed if elapsed else None


def crowded(samples: Iterable[Sample], threads: int, cores: int) -> bool:
    """Return whether others left fewer processors than the model has threads."""
    taken = processors(samples)
    return taken is not None and taken > AT_REST and taken + max(threads, 1) > cores

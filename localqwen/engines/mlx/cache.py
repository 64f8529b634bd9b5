"""Slots: which run's ids the caches hold, also after it has ended, and who may take them over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localqwen.engines import scheduling
from localqwen.engines.engine import Run
from localqwen.engines.mlx.model import Caches, copy, trim


@dataclass(eq=False)
class Slot:
    """`tokens` are the ids whose keys and values are in `caches`, in order; `used` orders slots by last use."""

    caches: Caches
    tokens: list[int] = field(default_factory=list)
    run: Run | None = None
    used: int = 0

    def settle(self) -> None:
        """An interrupted pass may have left more in some layers than was counted."""
        trim(self.caches, len(self.tokens))


class Slots:
    """`count` slots; `empty` makes one run's caches."""

    def __init__(self, count: int, empty: Callable[[], Caches]) -> None:
        self._empty = empty
        self._all = [Slot(empty()) for _ in range(count)]
        self._clock = 0

    def live(self) -> list[Slot]:
        """Those with a run, in the order in which their runs began."""
        return sorted((slot for slot in self._all if slot.run is not None), key=lambda slot: slot.used)

    def _free(self) -> list[Slot]:
        return sorted((slot for slot in self._all if slot.run is None), key=lambda slot: slot.used)

    def held(self, prompt: Sequence[int]) -> int:
        return scheduling.held(prompt, self._all)

    def check_free(self) -> None:
        scheduling.check_free(self._all)

    def take(self, run: Run, context_length: int) -> Slot:
        """A free slot that holds the longest known prefix of the prompt, and nothing else."""
        index, donor, keep = scheduling.place(run, self._all, context_length)
        slot = self._all[index]
        self._share(self._all[donor], slot, keep)
        self._clock += 1
        slot.run, slot.used = run, self._clock
        return slot

    def _share(self, donor: Slot, slot: Slot, keep: int) -> None:
        if not keep:
            slot.caches = self._empty()
        elif slot is not donor:
            slot.caches = copy(donor.caches, self._empty(), keep)
        slot.tokens = donor.tokens[: trim(slot.caches, keep)] if keep else []

    def tokens(self) -> int:
        """Positions that all caches hold together."""
        return sum(len(slot.tokens) for slot in self._all)

    def forget(self, room: int) -> None:
        """Empty free slots, the longest unused first, until `room` positions hold what is left."""
        for slot in self._free():
            if self.tokens() <= room:
                return
            slot.caches, slot.tokens = self._empty(), []

    def clear(self) -> None:
        for slot in self._all:
            slot.caches, slot.tokens = self._empty(), []

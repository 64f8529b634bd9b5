"""Whose prompt is read in a pass, where several wait. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class Turns:
    """The shortest comes first, so that a short question does not wait for a long document; every other time the
    oldest, which no number of short ones can hold up."""

    def __init__(self) -> None:
        self._oldest_first = False

    def share(self, left: Sequence[int], room: int) -> list[tuple[int, int]]:
        """(index, ids) of the prompts that this pass reads, given how many ids each has left, the oldest prompt first.

        One of them gets a slice, the others only all they need: a part of theirs would hold up the one that ends here.
        """
        self._oldest_first = not self._oldest_first
        order = range(len(left)) if self._oldest_first else sorted(range(len(left)), key=lambda index: left[index])
        shares: list[tuple[int, int]] = []
        for index in order:
            if left[index] <= room or not shares:
                shares.append((index, min(left[index], room)))
                room -= shares[-1][1]
        return shares

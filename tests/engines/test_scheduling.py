"""Whose prompt is read in a pass."""

import pytest

from localqwen.engines.turns import Turns


def read(left: list[int], room: int, passes: int) -> list[list[tuple[int, int]]]:
    turns = Turns()
    shared = []
    for _ in range(passes):
        waiting = [index for index, count in enumerate(left) if count]
        share = [(waiting[index], count) for index, count in turns.share([left[index] for index in waiting], room)]
        for index, count in share:
            left[index] -= count
        shared.append(share)
    return shared


@pytest.mark.parametrize(
    ("left", "passes"),
    [
        ([5], [[(0, 5)]]),
        ([70], [[(0, 32)], [(0, 32)], [(0, 6)]]),
        ([70, 8], [[(0, 32)], [(1, 8)], [(0, 32)], [(0, 6)]]),
        ([8, 70], [[(0, 8)], [(1, 32)], [(1, 32)], [(1, 6)]]),
        ([8, 9, 10], [[(0, 8), (1, 9), (2, 10)]]),
        ([70, 8, 30, 9], [[(0, 32)], [(1, 8), (3, 9)], [(0, 32)], [(0, 6)], [(2, 30)]]),
        ([40, 40], [[(0, 32)], [(0, 8)], [(1, 32)], [(1, 8)]]),
    ],
)
def test_short_prompts_do_not_wait_for_long_ones(left: list[int], passes: list[list[tuple[int, int]]]) -> None:
    assert read(left, 32, len(passes)) == passes
    assert not any(left)


def test_nobody_waits_for_ever() -> None:
    turns, long, passes = Turns(), 1000, 0
    while long:
        long -= sum(count for index, count in turns.share([long, 5, 6, 7], 32) if index == 0)
        passes += 1
    assert passes < 2 * 1000 / 32 + 2

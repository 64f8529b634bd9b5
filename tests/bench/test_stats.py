"""Statistics on synthetic timings whose answers are known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from localqwen.bench import stats
from localqwen.bench.stats import Summary, ratio, summary


def test_a_summary_is_that_of_the_textbook() -> None:
    assert summary([2, 4, 4, 4, 5, 5, 7, 9]) == Summary(
        count=8, mean=5, deviation=pytest.approx(math.sqrt(32 / 7)), median=4.5, p5=pytest.approx(2.7), p95=8.3
    )
    assert summary([3.0]) == Summary(1, 3, 0, 3, 3, 3)


def test_one_slow_token_moves_the_mean_and_not_the_median() -> None:
    found = summary([0.02] * 99 + [2.0])
    assert (found.median, found.mean) == (0.02, pytest.approx(0.0398))
    assert found.p95 == 0.02


def test_percentiles_are_numpys() -> None:
    values = [random.Random(1).expovariate(1) for _ in range(37)]
    for percent in (0, 5, 50, 95, 100):
        assert stats.percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_geometric_mean_and_slope() -> None:
    assert stats.geometric_mean([1, 10, 100]) == pytest.approx(10)
    assert stats.slope([(0, 5), (1, 4.5), (2, 4)]) == pytest.approx(-0.5)
    assert stats.slope([(1, 5), (1, 4)]) is None
    assert stats.slope([]) is None


def test_a_ratio_far_beyond_the_noise_is_a_difference_and_its_interval_holds_the_truth() -> None:
    found = ratio([100, 101, 99, 100, 100], [125, 126, 124, 125, 127])
    assert found.verdict == "difference"
    assert found.value == 1.25
    assert found.low < 1.25 < found.high


def test_noise_is_no_difference() -> None:
    assert ratio([100, 110, 90, 105, 95], [104, 94, 109, 99, 91]).verdict == "no difference"


def test_single_values_have_no_noise_to_compare_with() -> None:
    assert ratio([100], [200, 201]).verdict == "cannot tell"
    assert ratio([100, 101], [200]).value == pytest.approx(200 / 100.5)


def test_equal_values_without_any_spread_are_told_apart_or_not() -> None:
    assert ratio([5, 5, 5], [5, 5, 5]).verdict == "no difference"
    assert ratio([5, 5, 5], [6, 6, 6]).verdict == "difference"


def test_nineteen_of_twenty_comparisons_of_the_same_thing_find_no_difference() -> None:
    """The interval's promise, on 2,000 pairs of five normal timings with 3 % of noise."""
    generator = random.Random(7)
    draws = [[[generator.gauss(100, 3) for _ in range(5)] for _ in range(2)] for _ in range(2000)]
    wrong = sum(ratio(a, b).verdict == "difference" for a, b in draws)
    assert 0.03 < wrong / 2000 < 0.065


def test_students_quantiles_are_those_of_the_table() -> None:
    assert [stats.student(freedom) for freedom in (1, 4, 4.9, 8, 30, 1000)] == [
        12.706,
        2.776,
        2.776,
        2.306,
        2.042,
        2.042,
    ]

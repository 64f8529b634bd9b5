"""Statistics of timings, without assumptions that timings do not satisfy: medians beside means, ratios with noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond the table the last one applies.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A summary of `count` values, in their unit. `deviation` is the sample standard deviation, 0 for a single
    value."""

    count: int
    mean: float
    deviation: float
    median: float
    p5: float
    p95: float

    @property
    def spread(self) -> float:
        """Return the standard deviation as a share of the mean."""
        return self.deviation / abs(self.mean) if self.mean else 0.0


def summary(values: Sequence[float]) -> Summary:
    """Return a summary of the values. Raise statistics.StatisticsError if there are none."""
    return Summary(
        count=len(values),
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else 0.0,
        median=statistics.median(values),
        p5=percentile(values, 5),
        p95=percentile(values, 95),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, with linear interpolation between the two nearest values, as numpy does by default."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(statistics.fmean(map(math.log, values)))


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of the line with the least squares, in y per x; None if all x are equal."""
    try:
        return statistics.linear_regression(*zip(*points, strict=True)).slope
    except (statistics.StatisticsError, TypeError):
        return None


@dataclass(frozen=True)
class Ratio:
    """A comparison. `value` is the median of `b` divided by that of `a`; 95 of 100 such intervals contain the true
    ratio. `verdict` is "difference", "no difference" (the interval contains 1) or "cannot tell" (one side has a single
    value, and so no noise, or was measured beside other programs)."""

    value: float
    low: float
    high: float
    verdict: Literal["difference", "no difference", "cannot tell"]


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Return the comparison of two series of positive values. The interval is Welch's, on logarithms, because ratios
    are symmetric there."""
    value = statistics.median(b) / statistics.median(a)
    if min(len(a), len(b)) < 2:
        return Ratio(value, 0.0, math.inf, "cannot tell")
    left, right = ([math.log(each) for each in side] for side in (a, b))
    shares = [statistics.variance(side) / len(side) for side in (left, right)]
    half = student(_welch_freedom(shares, len(left), len(right))) * math.sqrt(sum(shares))
    middle = statistics.fmean(right) - statistics.fmean(left)
    low, high = math.exp(middle - half), math.exp(middle + half)
    return Ratio(value, low, high, "no difference" if low <= 1 <= high else "difference")


def student(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t."""
    return _STUDENT[min(max(int(freedom), 1), len(_STUDENT)) - 1]


def _welch_freedom(shares: Sequence[float], left: int, right: int) -> float:
    """Return the degrees of freedom after Welch and Satterthwaite."""
    below = shares[0] ** 2 / (left - 1) + shares[1] ** 2 / (right - 1)
    return sum(shares) ** 2 / below if below else 1.0

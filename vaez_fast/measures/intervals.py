"""Means over seeds with 95 % t-intervals, tests of them, and Holm's correction of many tests.

Differences between arms are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """mean ± half is a 95 % t-interval of `count` values."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def text(self) -> str:
        """The interval with as many digits as it supports: "20.06 ± 0.72", "1230 ± 230".

        The half width has two significant digits and the mean ends at the same place. A mean
        without spread has three significant digits and "± 0".
        """
        if not math.isfinite(self.mean + self.half):
            return f"{self.mean:.3g} ± {self.half:.3g}"
        if self.half == 0:
            return f"{_to_place(self.mean, _place(self.mean, 3))} ± 0"
        place = _place(self.half, 2)
        return f"{_to_place(self.mean, place)} ± {_to_place(self.half, place)}"


def _place(value: float, digits: int) -> int:
    # The decimal at which `digits` significant digits end. 0.0996 is 0.10, not 0.100, so the
    # exponent is that of the rounded number.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return digits - 1 - exponent


def _to_place(value: float, place: int) -> str:
    return f"{round(value, place) + 0.0:.{max(place, 0)}f}"  # + 0.0: no −0.00


def interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of values, which are taken as independent normal draws.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import t

    count = len(values)
    mean, error = _mean_and_error("interval", values)
    quantile = float(t.ppf(0.5 + LEVEL / 2, count - 1))
    return Interval(mean, quantile * error, count)


def _mean_and_error(name: str, values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    if count < 2:
        raise ValueError(f"{name}: at least two values are needed, got {count}")
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The interval of the differences first − second; arms of one seed share data and noise."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


def one_sided_p(values: Sequence[float], target: float) -> float:
    """p-value of the t-test with the null that the values' expectation is at most `target`.

    Values without spread have p = 0 above the target and p = 1 elsewhere.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import t

    mean, error = _mean_and_error("one_sided_p", values)
    if error == 0:
        return 0.0 if mean > target else 1.0
    return float(t.sf((mean - target) / error, len(values) - 1))


def inside_p(values: Sequence[float], low: float, high: float) -> float:
    """p-value of two one-sided t-tests: the null is that the expectation is not in low … high.

    Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
    The p-value is the larger one of the two tests, of ≤ low and of ≥ high. Values without spread
    have p = 0 inside and p = 1 elsewhere.

    Raises:
        ValueError: fewer than two values, or low ≥ high.
    """
    from scipy.stats import t

    if not low < high:
        raise ValueError(f"inside_p: low must be below high, got {low} and {high}")
    mean, error = _mean_and_error("inside_p", values)
    nearest = min(mean - low, high - mean)
    if error == 0:
        return 0.0 if nearest > 0 else 1.0
    return float(t.sf(nearest / error, len(values) - 1))


def outside_p(values: Sequence[float], low: float, high: float) -> float:
    """p-value of a t-test whose null is that the expectation is in low … high, ends included.

    With two finite ends it is twice the smaller of the two one-sided p-values. Values without
    spread have p = 0 outside and p = 1 elsewhere.

    Raises:
        ValueError: fewer than two values, or low ≥ high.
    """
    from scipy.stats import t

    if not low < high:
        raise ValueError(f"outside_p: low must be below high, got {low} and {high}")
    mean, error = _mean_and_error("outside_p", values)
    farthest = max(low - mean, mean - high)
    if error == 0:
        return 0.0 if farthest > 0 else 1.0
    ends = max(1, math.isfinite(low) + math.isfinite(high))
    return min(1.0, ends * float(t.sf(farthest / error, len(values) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given.

    Whoever rejects the hypotheses with adjusted p ≤ α makes one false rejection or more with
    probability α at most, whichever hypotheses are true and however the tests depend on each
    other. Holm, "A simple sequentially rejective multiple test procedure", 1979: the i-th smallest
    of m is multiplied by m − i + 1, and none may be below a smaller one.

    Raises:
        ValueError: a p-value is not in 0 … 1.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"holm: p_values must be in 0 … 1, got {wrong[0]}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
